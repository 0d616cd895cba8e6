"""Live comparison with transformers, shape by shape: logits, caches, gradients, text, files.

Each test notes its figures for `docs/families.md` (`tests.parity.ledger`).
"""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import zoo
from tests import programs
from tests.hf.cases import CASES
from tests.hf.cases.shared import untrained
from tests.parity import ledger
from tests.programs import LENGTH, PIECE, close, logits
from zoo.hf.load import flatten, load
from zoo.hf.save import save_hf

reference = pytest.importorskip(
    "tests.parity.reference",
    reason="live parity needs torch and transformers; the golden files stand in without them",
)


@pytest.fixture(scope="module", params=sorted(CASES))
def pair(request, tmp_path_factory):
    """(transformers' model, our Decoder's compiled `apply`, its Checkpoint, ids)."""
    model = reference.build(request.param)
    ckpt = load(reference.save(model, tmp_path_factory.mktemp(request.param)))
    apply = jax.jit(zoo.Decoder(ckpt.config).apply)
    yield model, apply, ckpt, reference.tokens(model, 2, LENGTH)
    jax.clear_caches()


@pytest.fixture
def note(request, pair):
    """Notes figures of this case."""
    case, ckpt = request.node.callspec.params["pair"], pair[2]
    family = ckpt.source.config["model_type"]
    return lambda **figures: ledger.note(case, family, **figures)


def test_logits(pair, note):
    model, apply, ckpt, ids = pair
    note(logits=close(logits(apply, ckpt.params, ids), reference.logits(model, ids)))


def test_cached_logits(pair, note):
    model, apply, ckpt, ids = pair
    found = programs.cached_logits(apply, ckpt.params, ids, ckpt.config)
    close(found, reference.logits(model, ids))
    note(cached=close(found, reference.cached_logits(model, ids, PIECE)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(pair, side, note):
    model, apply, ckpt, ids = pair
    slots = np.arange(LENGTH)[None]
    real = np.asarray([[LENGTH], [LENGTH - 7]])
    mask = slots >= LENGTH - real if side == "left" else slots < real
    found = logits(apply, ckpt.params, ids, mask)
    wanted = reference.logits(model, ids, mask.astype(np.int64))
    note(padded=close(found[mask], wanted[mask]))


def test_gradients(pair, tmp_path, note):
    model, _, ckpt, ids = pair
    wanted_loss = reference.loss_and_gradients(model, ids, tmp_path / "gradients")
    wanted = flatten(load(tmp_path / "gradients").params)
    value, gradients = programs.loss_and_gradients(zoo.Decoder(ckpt.config), ckpt.params, ids)
    assert abs(value - wanted_loss) <= 1e-5 * wanted_loss
    worst = 0.0
    for path, gradient in flatten(gradients).items():
        if untrained(path):
            assert not np.any(gradient), path
            continue
        scale = np.abs(wanted[path]).max()
        assert scale > 0, f"{path} gets no gradient: the case does not test it"
        error = np.abs(np.asarray(gradient) - np.asarray(wanted[path])).max() / scale
        assert error <= 1e-4, f"{path} is off by {error:.1e}"
        worst = max(worst, float(error))
    note(gradients=worst)


def test_greedy_text(pair, note):
    model, _, ckpt, ids = pair
    prompts = programs.prompts(ids)
    found = zoo.generate(
        zoo.Decoder(ckpt.config), ckpt.params, prompts, max_new_tokens=64, temperature=0.0
    )
    for ours, prompt in zip(found, prompts, strict=True):
        assert list(map(int, ours)) == reference.greedy(model, prompt)
    note(greedy=True)


@pytest.mark.parametrize("kind", [{}, {"dtype": "bfloat16", "max_shard_size": "20KB"}])
def test_round_trip(pair, kind, tmp_path, note):
    """What transformers writes, in one file and in shards, goes back byte for byte."""
    model = pair[0]
    first = reference.save_as(model, tmp_path / "first", **kind)
    found = load(first)
    save_hf(tmp_path / "again", found.config, found.params, source=found.source)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (first / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    note(round_trip=True)


def test_fresh_export_loads_in_transformers(pair, tmp_path, note):
    """A model of ours, with a config of our own writing, says the same in transformers."""
    import torch
    import transformers

    _, apply, ckpt, ids = pair
    params = jax.tree.map(lambda x: x * 0.9 + 0.01, ckpt.params)
    save_hf(tmp_path / "fresh", ckpt.config, params)
    (kind,) = json.loads((tmp_path / "fresh" / "config.json").read_text())["architectures"]
    again, info = getattr(transformers, kind).from_pretrained(
        tmp_path / "fresh",
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    problems = {k: v for k, v in info.items() if v}
    assert not problems
    note(fresh=close(logits(apply, params, ids), reference.logits(again.eval(), ids)))
