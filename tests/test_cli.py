"""The zoo command end to end, on a folder that it made itself, and on input that is wrong."""

import filecmp
import io
import json
import os
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import zoo
from tests.examples import random_params
from zoo import checkpoint, cli

TEXT = "def main():\n    return 0\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a tiny qwen3 with a byte-level tokenizer."""
    made = tmp_path_factory.mktemp("made")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(made / "tokenizer.json"))
    cfg = zoo.config_from_hf(
        dict(
            model_type="qwen3", vocab_size=256, hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=128,
        )
    )  # fmt: skip
    params = random_params(zoo.Decoder(cfg))
    zoo.save_hf(made / "hf", cfg, params, tokenizer=made / "tokenizer.json",
                generation={"eos_token_id": [7, 9]})  # fmt: skip
    return made / "hf"


@pytest.fixture(autouse=True)
def width(monkeypatch):
    """Of a narrow terminal, which is not what reads here: nothing is cut."""
    monkeypatch.setenv("COLUMNS", "60")


def run(capsys, *argv):
    status = cli.main([str(a) for a in argv])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_show_counts_parameters(capsys, folder):
    status, out, _ = run(capsys, "show", folder)
    leaves = jax.tree.leaves(zoo.load(folder).params)
    assert status == 0
    assert f"{sum(x.size for x in leaves) / 1e3:.2f}K parameters" in out
    assert "attn" in out
    assert "x 2" in out


def test_show_lays_parameters_on_a_mesh(capsys, folder):
    status, out, _ = run(capsys, "show", folder, "--mesh", "fsdp=8,tensor=2")
    assert status == 0
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") == 5}
    gate = [part.strip() for part in rows["stack_0/layer_0/mlp/gate/w"].split("│")]
    assert gate[2:5] == ["[2, 32, 48]", "1: fsdp, 2: tensor", f"{2 * 4 * 24 * 2:,}"]
    assert "whole" in rows["final_norm/scale"]
    params = zoo.load(folder).params
    assert f"{sum(x.size for x in jax.tree.leaves(params)) * 2:,}" in rows["total"]
    status, _, err = run(capsys, "show", folder, "--mesh", "tensor=4")
    assert status == 2
    assert "kv_heads=2 does not divide by tensor=4: 2 would" in err


def test_show_and_list_know_deepseek_v3(capsys):
    status, out, _ = run(capsys, "show", "deepseek-v3")
    assert status == 0
    assert "671.03B parameters, 36.63B active" in " ".join(out.split())
    assert "cache 70,272 bytes per token" in " ".join(out.split())
    status, out, _ = run(capsys, "list", "deepseek-v3")
    assert "deepseek-v3 " in out
    assert "671.03B" in out
    assert "qwen3" not in out


def test_generate_continues_prompts(capsys, folder):
    status, out, _ = run(capsys, "generate", folder, "--prompt", TEXT, "--max-new-tokens", 8)
    assert status == 0
    assert out.startswith(TEXT)
    found = zoo.load(folder)
    assert found.source.eos == (7, 9)
    prompt = found.tokenizer.encode(TEXT).ids
    model = zoo.Decoder(found.config)
    made = zoo.generate(model, found.params, [prompt], 8, eos=(7, 9))[0]
    assert out == TEXT + found.tokenizer.decode(made) + "\n"


@pytest.fixture
def chatty(folder, tmp_path):
    """The folder with a chat template, and advice on sampling."""
    made = Path(shutil.copytree(folder, tmp_path / "chatty"))
    (made / "chat_template.jinja").write_text("{{ messages | map(attribute='content') | join }}")
    (made / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 7, "do_sample": True, "temperature": 0.7, "top_k": 0})
    )
    return made


def test_chat_answers_the_lines_of_stdin(capsys, monkeypatch, chatty):
    def say(*flags):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TEXT}/reset\nHi\n/exit\nnever\n"))
        status, out, err = run(capsys, "chat", chatty, "--max-new-tokens", 6, *flags)
        assert (status, err) == (0, "")
        return out

    found = zoo.load(chatty)
    prompt = found.chat.encode([{"role": "user", "content": TEXT.strip().splitlines()[0]}])
    model = zoo.Decoder(found.config)
    made = zoo.generate(model, found.params, [prompt], 6, eos=7)[0]
    greedy = say("--temperature", 0)
    assert greedy.startswith(found.tokenizer.decode([t for t in made if t != 7]) + "\n")
    assert say("--seed", 1) == say("--seed", 1, "--temperature", 0.7) != greedy


def test_chat_needs_a_template_and_says_so_before_the_weights(capsys, chatty):
    (chatty / "chat_template.jinja").unlink()
    (chatty / "model.safetensors").write_bytes(b"")
    status, _, err = run(capsys, "chat", chatty)
    assert status == 2
    assert "has no chat template" in err


def test_chat_with_a_run_on_a_mesh(capsys, monkeypatch, chatty, tmp_path):
    assert run(capsys, "convert", chatty, tmp_path / "run")[0] == 0
    outs = []
    for model, *mesh in ((chatty,), (tmp_path / "run", "--mesh", "fsdp=4,tensor=2")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
        outs.append(run(capsys, "chat", model, "--max-new-tokens", 6, *mesh)[1])
    assert outs[0] == outs[1] != ""


def test_convert_on_a_mesh_to_a_run_and_back_loses_nothing(capsys, folder, tmp_path):
    mesh = "--mesh", "fsdp=4,tensor=2"
    assert run(capsys, "convert", folder, tmp_path / "run", *mesh)[0] == 0
    assert checkpoint.is_run(tmp_path / "run")
    assert run(capsys, "convert", tmp_path / "run", tmp_path / "hf", *mesh)[0] == 0
    same = ("model.safetensors", "tokenizer.json")
    assert filecmp.cmpfiles(folder, tmp_path / "hf", same, shallow=False)[0] == list(same)
    said = "--prompt", TEXT, "--max-new-tokens", 8
    status, out, _ = run(capsys, "generate", tmp_path / "hf", *said, *mesh)
    assert status == 0
    assert out == run(capsys, "generate", folder, *said)[1]


def test_convert_changes_the_type_when_asked(capsys, folder, tmp_path):
    assert run(capsys, "convert", folder, tmp_path / "run", "--dtype", "bfloat16")[0] == 0
    assert run(capsys, "convert", tmp_path / "run", tmp_path / "hf")[0] == 0
    want = jax.tree.map(lambda x: x.astype(jnp.bfloat16), zoo.load(folder).params)
    got = zoo.load(tmp_path / "hf").params
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_convert_fills_an_empty_folder_that_somebody_is_in(capsys, folder, tmp_path, monkeypatch):
    """Replaced, it would be gone for the shell that is in it; so it is not replaced later."""
    assert run(capsys, "convert", folder, tmp_path / "run")[0] == 0
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / ".inside.01234567.tmp").mkdir()  # as a save that was killed leaves it
    monkeypatch.chdir(inside)
    assert run(capsys, "convert", tmp_path / "run", ".")[0] == 0
    names = sorted(os.listdir("."))
    assert names == sorted(path.name for path in folder.iterdir())
    assert filecmp.cmpfiles(folder, ".", ["model.safetensors"], False)[0] == ["model.safetensors"]
    status, _, err = run(capsys, "convert", tmp_path / "run", ".")
    assert status == 2
    assert "is the current directory" in err
    assert sorted(os.listdir(".")) == names


def test_convert_knows_where_it_cannot_write_before_it_loads(capsys, folder, tmp_path, monkeypatch):
    assert run(capsys, "convert", folder, tmp_path / "run")[0] == 0
    (tmp_path / "file").touch()
    monkeypatch.setattr(zoo, "load", None)
    monkeypatch.setattr(checkpoint, "load_run", None)
    within = tmp_path / "run/checkpoints/7"
    for source, out, says in (
        (tmp_path / "run", tmp_path / "run", "is not empty and no checkpoint"),
        (tmp_path / "run", within, "is among the checkpoints of the run"),
        (tmp_path / "run", tmp_path / "file", "is a file"),
        (folder, tmp_path / "file", "is a file"),
        (folder, tmp_path / "run", "is not empty: name a new folder"),
    ):
        status, _, err = run(capsys, "convert", source, out)
        assert status == 2
        assert says in err
    assert not within.exists()


def test_verify_says_byte_identical(capsys, folder):
    status, out, _ = run(capsys, "verify", folder)
    assert status == 0
    assert "byte-identical" in out


def test_a_mesh_that_does_not_fit_the_folder(capsys, folder):
    status, _, err = run(capsys, "generate", folder, "--prompt", "x", "--mesh", "tensor=8")
    assert status == 2
    assert "kv_heads=2 does not divide by tensor=8" in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["show", "qwen3-0.7b"], "qwen3-0.6b"),
        (["generate", "no-such-folder", "--prompt", "x"], "no-such-folder"),
        (["generate", "x", "--prompt", "x", "--top-k", "5"], "--top-k=5 would change nothing"),
        (["generate", "x", "--prompt", "x", "--seed", "3"], "--seed=3 would change nothing"),
        (["convert", "no-such-folder", "out"], "no-such-folder"),
        (["chat", "no-such-folder"], "no-such-folder"),
        (["chat", "no-such-folder", "--mesh", "tensor=3"], "make the sizes multiply to 8"),
        (["chat", "no-such-folder", "--rules", "fsdp"], "say which by --mesh"),
    ],
)
def test_errors_are_one_line_and_status_2(capsys, argv, says):
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert err.startswith(f"zoo {argv[0]}: ")
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
