"""What a run exports, in the hands of transformers: the same logits, losses and tokens."""

import jax
import numpy as np
import pytest

import zoo
from tests.training.tiny import get_config
from zoo.data import eval_batches, prepare
from zoo.training import loop
from zoo.training.settings import from_config

torch = pytest.importorskip("torch", reason="live parity needs torch and transformers")
transformers = pytest.importorskip(
    "transformers", reason="live parity needs torch and transformers"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A finished run's folder and outcome, its data, and the exported model in transformers."""
    workdir, cache = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("cache")
    settings = from_config(get_config())
    outcome = loop.run(settings, workdir, cache)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        workdir / "hf",
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return workdir, outcome, prepare(settings.data, cache), reference.eval()


def segments(batches):
    """Tokens and targets of every document, or piece of one, in every window."""
    for batch in batches:
        for row in range(len(batch["tokens"])):
            ids = batch["segment_ids"][row]
            for number in range(1, ids.max() + 1):
                yield batch["tokens"][row][ids == number], batch["targets"][row][ids == number]


def test_transformers_finds_the_validation_loss_and_our_logits(exported):
    workdir, outcome, data, reference = exported
    found = zoo.load(workdir / "hf")
    apply = jax.jit(zoo.Decoder(found.config).apply)
    total = count = 0
    for tokens, targets in segments(eval_batches(data, "validation", 4)):
        with torch.no_grad():
            wanted = reference(torch.tensor(tokens[None])).logits.numpy()[0]
        got = np.asarray(apply(found.params, tokens[None]).logits[0])
        assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
        predicted = targets >= 0
        nll = np.logaddexp.reduce(wanted.astype(np.float64), axis=-1)
        nll -= np.take_along_axis(wanted, np.maximum(targets, 0)[:, None], -1)[:, 0]
        total, count = total + nll[predicted].sum(), count + predicted.sum()
    assert count > 100
    assert total / count == pytest.approx(outcome.summary["loss"], rel=1e-5)


def test_auto_tokenizer_reads_the_export(exported):
    workdir, _, data, _ = exported
    text = 'def main():\n    return "tide" * 2\n'
    tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / "hf")
    assert tokenizer(text)["input_ids"] == data.tokenizer.encode(text)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == data.tokenizer.eos
