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
from tests.hf.cases import GOLDEN
from tests.hf.cases.shared import untrained
from zoo import cache
from zoo.hf.load import flatten, load

FOLDER = Path(__file__).parent.parent / "golden"
PROMPTS = (5, 9)  # of tests/make_golden.py


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def case(request):
    """(Decoder, parameters in float32, what transformers computed)."""
    ckpt = load(FOLDER / request.param, dtype=jnp.float32)
    yield zoo.Decoder(ckpt.config), ckpt.params, np.load(FOLDER / f"{request.param}.npz")
    jax.clear_caches()


def close(found, wanted, bound=1e-5):
    error = np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()
    assert error <= bound, f"off by {error:.2e} of the scale, {bound:.0e} allowed"


def test_logits(case):
    model, params, golden = case
    close(jax.jit(model.apply)(params, golden["ids"]).logits, golden["logits"])


def test_cached_logits(case):
    model, params, golden = case
    ids, step = golden["ids"], jax.jit(model.apply)
    out = step(params, ids[:, :7], cache=cache.init(model.cfg, 2, 16, jnp.float32))
    found = [out.logits]
    for t in range(7, 16):
        out = step(params, ids[:, t : t + 1], cache=out.cache)
        found.append(out.logits)
    close(np.concatenate(found, 1), golden["cached"])


def test_gradients(case):
    model, params, golden = case
    ids = jnp.asarray(golden["ids"])

    def loss(params):
        chosen = jax.nn.log_softmax(model.apply(params, ids).logits[:, :-1])
        return -jnp.take_along_axis(chosen, ids[:, 1:, None], -1).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(float(golden["loss"]), rel=1e-5)
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
    model, params, golden = case
    prompts = [golden["ids"][i, :n].tolist() for i, n in enumerate(PROMPTS)]
    found = zoo.generate(model, params, prompts, max_new_tokens=64, temperature=0.0)
    assert [list(map(int, row)) for row in found] == golden["greedy"].tolist()
