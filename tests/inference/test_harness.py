"""Tasks of lm-evaluation-harness: what the adapter answers, against sums over plain logits."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

import zoo
from tests.examples import random_params
from zoo import cli
from zoo.inference.harness import open_harness
from zoo.inference.score import Pair, score

ROOT = Path(__file__).parents[2]
LETTERS = [chr(c) for c in range(32, 127)] + ["\n"]
START, END = len(LETTERS), len(LETTERS) + 1
LONGEST = 48
QUESTIONS = ["Is it late?", "Who?", "What is a tide?", "", "How many? "]
CHOICES = [" yes", " no, not yet", " 42"]
TEXTS = ["A text of one window.", "Another, which is read in windows: " + "tide and time " * 9]
ALONE = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name in ("torch", "transformers")
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
from zoo import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of letters, with tokens that begin and end a text."""
    made = tmp_path_factory.mktemp("made")
    vocab = {letter: i for i, letter in enumerate([*LETTERS, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(made / "tokenizer.json"))
    cfg = zoo.config_from_hf(
        dict(
            model_type="qwen3", vocab_size=len(vocab), hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=LONGEST,
        )
    )  # fmt: skip
    params = random_params(zoo.Decoder(cfg))
    zoo.save_hf(made / "hf", cfg, params, tokenizer=made / "tokenizer.json")
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    (made / "hf" / "tokenizer_config.json").write_text(json.dumps(named))
    return made / "hf"


def ids(text):
    return [LETTERS.index(letter) for letter in text]


@pytest.fixture(scope="module")
def plain(folder):
    """Log-probabilities f64[len(tokens), V] of one text by itself, without padding that counts."""
    found = zoo.load(folder)
    apply = jax.jit(zoo.Decoder(found.config).apply)

    def logprobs(tokens):
        padded = np.zeros((1, LONGEST), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = np.asarray(apply(found.params, padded).logits[0, : len(tokens)], np.float64)
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    return logprobs


def by_hand(plain, context, continuation):
    rows = plain([*context, *continuation][:-1])[len(context) - 1 :]
    total = sum(row[token] for row, token in zip(rows, continuation, strict=True))
    return total, rows.argmax(-1).tolist() == continuation


def parts(context, continuation):
    """Tokens of both; spaces between them belong to what follows."""
    bare = context.rstrip()
    return ids(bare) or [START], ids(context[len(bare) :] + continuation)


def ask(*arguments):
    return [SimpleNamespace(args=args) for args in arguments]


def test_loglikelihood(folder, plain):
    lm = open_harness(folder, batch_size=4)
    pairs = [(q, c) for q in QUESTIONS for c in CHOICES]
    for (context, continuation), found in zip(pairs, lm.loglikelihood(ask(*pairs)), strict=True):
        want = by_hand(plain, *parts(context, continuation))
        assert found == (pytest.approx(want[0], rel=1e-5), want[1])


def test_score_of_what_is_likeliest_and_of_long_rows(folder, plain):
    found = zoo.load(folder)
    model = zoo.Decoder(found.config)
    context = ids("Who?")
    likeliest = int(plain(context)[-1].argmax())
    long = ids("tide and time " * 6)
    pairs = [Pair(context, [likeliest]), Pair(context, [likeliest ^ 1]), Pair(long, context)]
    first, second, cut = score(model, found.params, pairs, batch_size=8)
    assert (first.greedy, second.greedy) == (True, False)
    want = by_hand(plain, long[len(context) - LONGEST - 1 :], context)[0]
    assert cut.logprob == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match="continuation has 84 tokens, and max_length=48"):
        score(model, found.params, [Pair(context, long)])
    with pytest.raises(ValueError, match="context is empty"):
        score(model, found.params, [Pair([], context)])


def rolling_by_hand(plain, text):
    """Every token once, in windows of which the last looks back as far as the model can."""
    tokens, total = [START, *ids(text)], 0.0
    for first in range(1, len(tokens), LONGEST):
        last = min(first + LONGEST, len(tokens))
        begin = max(0, min(first - 1, last - 1 - LONGEST))
        total += by_hand(plain, tokens[begin:first], tokens[first:last])[0]
    return total


def test_rolling(folder, plain):
    lm = open_harness(folder, batch_size=2)
    found = lm.loglikelihood_rolling(ask(*((text,) for text in TEXTS)))
    assert len(TEXTS[1]) > 3 * LONGEST
    assert found == pytest.approx([rolling_by_hand(plain, text) for text in TEXTS], rel=1e-5)


@pytest.fixture(scope="module")
def continued(plain):
    """Greedy continuations of two prompts by 12 letters, by hand."""

    def text(prompt):
        tokens = ids(prompt)
        for _ in range(12):
            tokens.append(int(plain(tokens)[-1].argmax()))
        assert not {START, END} & set(tokens)
        return "".join(LETTERS[t] for t in tokens[len(prompt) :])

    return {prompt: text(prompt) for prompt in ("Who?", "What is it?")}


def test_generate_until(folder, continued, tmp_path):
    lm = open_harness(folder, batch_size=1)
    (prompt, whole), (other, text) = continued.items()
    stop = whole[5:7]
    options = {"max_gen_toks": 12, "do_sample": False}
    requests = ask((prompt, options), (prompt, options | {"until": [stop]}), (other, options))
    assert lm.generate_until(requests) == [whole, whole[: whole.index(stop)], text]
    chatty = Path(shutil.copytree(folder, tmp_path / "chatty"))
    penalty = {"repetition_penalty": 1.7}
    (penalised,) = lm.generate_until(ask((prompt, options | penalty)))
    assert penalised != whole
    (chatty / "generation_config.json").write_text(json.dumps({**penalty, "top_k": 5}))
    advised = open_harness(chatty, batch_size=1)
    unpenalised = options | {"repetition_penalty": 1.0}
    found = advised.generate_until(ask((prompt, options), (prompt, unpenalised)))
    assert found == [penalised, whole]
    (chatty / "generation_config.json").write_text(json.dumps({"eos_token_id": ids(stop)[:1]}))
    lm._ends = open_harness(chatty)._ends
    assert lm.generate_until(requests[:1]) == [whole[: whole.index(stop[0])]]
    with pytest.raises(ValueError, match="generation_kwargs: 'beams' is not known"):
        lm.generate_until(ask((prompt, {"beams": 4})))
    with pytest.raises(ValueError, match="max_gen_toks=48 leaves no room in max_length=48"):
        lm.generate_until(ask((prompt, {"max_gen_toks": 48})))


def test_on_eight_devices_it_answers_as_on_one(folder, plain, continued):
    """Each of which holds its part of the parameters."""
    lm = open_harness(folder, batch_size=4, mesh=zoo.make_mesh("data=2,fsdp=2,tensor=2"))
    largest = max(jax.tree.leaves(lm._params), key=lambda x: x.size)
    assert largest.addressable_shards[0].data.size == largest.size // 4
    pairs = [(q, c) for q in QUESTIONS[:2] for c in CHOICES]
    for (context, continuation), found in zip(pairs, lm.loglikelihood(ask(*pairs)), strict=True):
        want = by_hand(plain, *parts(context, continuation))
        assert found == (pytest.approx(want[0], rel=1e-5), want[1])
    options = {"max_gen_toks": 12, "do_sample": False}
    texts = lm.generate_until(ask(*((prompt, options) for prompt in continued)))
    assert texts == list(continued.values())


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, continued):
    """A folder of three tasks with local data."""
    made = tmp_path_factory.mktemp("tasks")
    choice = [{"q": q or "So?", "choices": CHOICES, "a": i % 3} for i, q in enumerate(QUESTIONS)]
    answers = [{"q": q, "a": a if q == "Who?" else "wrong"} for q, a in continued.items()]
    data = {"choice": choice, "rolling": [{"text": t} for t in TEXTS], "until": answers}
    common = dict(
        dataset_path="json", test_split="test", doc_to_text="{{q}}", doc_to_target="{{a}}",
        metadata={"version": 1},
    )  # fmt: skip
    kinds = {
        "choice": dict(output_type="multiple_choice", doc_to_choice="{{choices}}",
                       target_delimiter="", metric_list=[{"metric": "acc"}]),
        "rolling": dict(output_type="loglikelihood_rolling", doc_to_text="",
                        doc_to_target="{{text}}", metric_list=[{"metric": "bits_per_byte"}]),
        "until": dict(output_type="generate_until", metric_list=[{"metric": "exact_match"}],
                      generation_kwargs={"max_gen_toks": 12, "until": ["\n\n"]}),
    }  # fmt: skip
    for name, rows in data.items():
        file = made / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        kwargs = {"data_files": {"test": str(file)}, "cache_dir": str(made / "cache")}
        task = {"task": f"zoo_{name}", **common, "dataset_kwargs": kwargs, **kinds[name]}
        (made / f"{name}.yaml").write_text(json.dumps(task))
    return made, choice


def test_the_command_runs_local_tasks_without_torch(folder, tasks, plain, tmp_path):
    where, docs = tasks
    out = tmp_path / "found.json"
    argv = ["eval", folder, "--tasks", "zoo_choice,zoo_rolling,zoo_until"]
    argv += ["--include-path", where, "--out", out, "--batch-size", 4]
    command = [sys.executable, "-c", ALONE, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    right = 0
    for doc in docs:
        scores = [by_hand(plain, *parts(doc["q"], choice))[0] for choice in CHOICES]
        right += int(np.argmax(scores)) == doc["a"]
    assert found["zoo_choice"]["acc,none"] == pytest.approx(right / len(docs))
    nats = -sum(rolling_by_hand(plain, text) for text in TEXTS)
    bits = nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert found["zoo_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
    assert found["zoo_until"]["exact_match,none"] == 0.5
    assert "exact_match,none" in done.stdout


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "names no task"),
        (["--tasks", "zoo_until", "--rules", "data"], "--rules=data are for a mesh"),
        (["--tasks", "zoo_until", "--mesh", "data=3"], "mesh 'data=3' holds 3 device(s)"),
        (["--tasks", "zoo_until", "--which", "best"], "--which=best would change nothing"),
        (["--tasks", "zoo_until", "--out", "no/x.json"], "--out=no/x.json cannot be written"),
        (["--tasks", "zoo_until", "--out", "."], "--out=. cannot be written: name a file"),
    ],
)
def test_a_command_that_is_wrong_ends_before_anything_is_loaded(folder, capsys, flags, says):
    assert cli.main(["eval", str(folder), *flags]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--num_fewshot=3", "--dtype=float32"], "--num_fewshot, --dtype: that is for tasks"),
        (["--which=best"], "--which=best would change nothing: {} is no run"),
        (["--tasks=x", "--split=test", "--batches=2"], "--split, --batches: that is for text"),
    ],
)
def test_flags_that_nothing_reads_are_refused(folder, flags, says):
    command = [sys.executable, "eval.py", f"--model={folder}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert f"error: {says.format(folder)}" in done.stderr


def test_without_lm_eval_the_extra_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "zoo.inference.harness")
    monkeypatch.delattr(zoo.inference, "harness")
    assert cli.main(["eval", str(folder), "--tasks", "zoo_choice"]) == 2
    assert "pip install 'zoo-jax[eval]'" in capsys.readouterr().err
