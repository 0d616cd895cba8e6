"""Live comparison with transformers, shape by shape: logits, caches, gradients, text, files.

Each test notes its figures for `docs/families.md` (`tests.parity.ledger`).
"""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import zoo
from tests import programs
from tests.hf.cases import CASES
from tests.hf.cases.shared import untrained
from tests.parity import ledger
from tests.programs import LENGTH, PIECE, close
from zoo.hf.load import flatten, load
from zoo.hf.save import save_hf

ALL = np.ones((2, LENGTH))
"""A mask, so that plain and padded batches are one program; golden tests have none."""

reference = pytest.importorskip(
    "tests.parity.reference",
    reason="live parity needs torch and transformers; the golden files stand in without them",
)


@pytest.fixture(scope="module", params=sorted(CASES))
def pair(request, tmp_path_factory):
    """(transformers' model, what ours makes of whole sequences, its Checkpoint, ids)."""
    model = reference.build(request.param)
    ckpt = load(reference.save(model, tmp_path_factory.mktemp(request.param)))
    yield model, programs.whole(zoo.Decoder(ckpt.config)), ckpt, reference.tokens(model, 2, LENGTH)
    jax.clear_caches()


@pytest.fixture
def note(request, pair):
    """Notes figures of this case."""
    case, ckpt = request.node.callspec.params["pair"], pair[2]
    family = ckpt.source.config["model_type"]
    return lambda **figures: ledger.note(case, family, **figures)


def test_logits(pair, note):
    model, whole, ckpt, ids = pair
    note(logits=close(whole(ckpt.params, ids, ALL).logits, reference.logits(model, ids)))


def test_cached_logits(pair, note):
    model, _, ckpt, ids = pair
    found = programs.cached_logits(zoo.Decoder(ckpt.config), ckpt.params, ids)
    close(found, reference.logits(model, ids))
    note(cached=close(found, reference.cached_logits(model, ids, PIECE)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(pair, side, note):
    model, whole, ckpt, ids = pair
    slots = np.arange(LENGTH)[None]
    real = np.asarray([[LENGTH], [LENGTH - 7]])
    mask = slots >= LENGTH - real if side == "left" else slots < real
    found = whole(ckpt.params, ids, mask).logits
    wanted = reference.logits(model, ids, mask.astype(np.int64))
    note(padded=close(found[mask], wanted[mask]))


def test_gradients(pair, tmp_path, note):
    model, whole, ckpt, ids = pair
    wanted_loss = reference.loss_and_gradients(model, ids, tmp_path / "gradients")
    wanted = flatten(load(tmp_path / "gradients").params)
    _, loss, gradients = whole(ckpt.params, ids, ALL)
    assert abs(loss - wanted_loss) <= 1e-5 * wanted_loss
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

    _, whole, ckpt, ids = pair
    params = jax.tree.map(lambda x: np.asarray(x) * 0.9 + 0.01, ckpt.params)
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
    note(fresh=close(whole(params, ids, ALL).logits, reference.logits(again.eval(), ids)))


def test_a_config_without_experts_comes_back_from_transformers(tmp_path):
    """Which writes its own defaults for experts that no layer has."""
    import transformers

    cfg = zoo.config("deepseek-v3")
    dense = dataclasses.replace(cfg, stacks=cfg.stacks[:1], mtp=())
    theirs = transformers.AutoConfig.for_model(**zoo.config_to_hf(dense))
    theirs.save_pretrained(tmp_path)
    assert zoo.config_from_hf(tmp_path) == dense
