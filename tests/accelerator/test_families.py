"""Every family on the accelerator against the CPU, with and without a cache, in both types."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.hf.cases import GOLDEN
from tests.test_lowering import FOLDER
from zoo import cache as caches
from zoo.hf.load import load

BOUNDS = {"float32": 1e-4, "bfloat16": 4e-2}
"""Of the logits' scale. Accelerators order sums another way, and bfloat16 rounds each product."""


def logits(model, params, tokens, device):
    """Of a whole call, and of a prefill and one step against its cache; f32[B, T, V] each."""

    @jax.jit
    def program(params, tokens):
        whole = model.apply(params, tokens).logits
        head, last = tokens[:, :-1], tokens[:, -1:]
        cache = caches.init(model.cfg, len(tokens), head.shape[1], model.dtype)
        cache = caches.grow(model.apply(params, head, cache=cache).cache, 1)
        return whole, model.apply(params, last, cache=cache).logits

    with jax.default_device(device):
        placed = jax.device_put((params, tokens), device)
        return [np.asarray(x, np.float32) for x in program(*placed)]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_equals_cpu(name, dtype, accelerator, cpu):
    ckpt = load(FOLDER / name, dtype=jnp.float32)
    golden = np.load(FOLDER / f"{name}.npz")
    tokens = jnp.asarray(golden["ids"], jnp.int32)
    got = logits(zoo.Decoder(ckpt.config, dtype=jnp.dtype(dtype)), ckpt.params, tokens, accelerator)
    want = logits(zoo.Decoder(ckpt.config), ckpt.params, tokens, cpu)
    for a, b in zip(got, want, strict=True):
        error = np.abs(a - b).max() / np.abs(b).max()
        if dtype == "bfloat16":  # a router that changes its mind moves a token by more
            error = np.median(np.abs(a - b)) / np.abs(b).max()
        assert error <= BOUNDS[dtype]
