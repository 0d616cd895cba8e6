"""Against committed files: what transformers wrote and computed, without torch or transformers.

`tests/make_golden.py` makes them. A change that moves a figure here changed what a model computes.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests import programs
from tests.hf.cases import GOLDEN
from tests.hf.cases.shared import untrained
from zoo.hf.load import flatten, load

pytestmark = pytest.mark.optimised

FOLDER = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def case(request):
    """(Decoder, what it makes of whole sequences, its parameters, what transformers computed)."""
    ckpt = load(FOLDER / request.param, dtype=jnp.float32)
    model = zoo.Decoder(ckpt.config)
    yield model, programs.whole(model), ckpt.params, np.load(FOLDER / f"{request.param}.npz")
    jax.clear_caches()


def test_logits(case):
    _, whole, params, golden = case
    programs.close(whole(params, golden["ids"]).logits, golden["logits"])


def test_cached_logits(case):
    model, _, params, golden = case
    programs.close(programs.cached_logits(model, params, golden["ids"]), golden["cached"])


def test_gradients(case):
    _, whole, params, golden = case
    _, loss, gradients = whole(params, golden["ids"])
    assert loss == pytest.approx(float(golden["loss"]), rel=1e-5)
    for path, gradient in flatten(gradients["params"]).items():
        flat = np.asarray(gradient).reshape(-1)
        if untrained(path):
            assert not flat.any()
            continue
        norm, largest, *spread = golden[f"gradient/{path}"]
        assert np.linalg.norm(flat) == pytest.approx(norm, rel=1e-4), path
        found = flat[np.linspace(0, flat.size - 1, 16).astype(int)]
        np.testing.assert_allclose(found, spread, rtol=0, atol=1e-4 * largest, err_msg=path)


def test_greedy_text(case):
    model, _, params, golden = case
    prompts = programs.prompts(golden["ids"])
    found = zoo.generate(model, params, prompts, max_new_tokens=64, temperature=0.0)
    assert [list(map(int, row)) for row in found] == golden["greedy"].tolist()
