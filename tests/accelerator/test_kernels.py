"""The accelerator's kernels against plain mathematics, and training on a mesh of one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from zoo import attention, kernels, sharding
from zoo.training.optimizer import make_optimizer
from zoo.training.settings import Balance, Optimizer
from zoo.training.step import create_state, make_step


def close(got, want, bound):
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    assert np.abs(got - want).max() <= bound * np.abs(want).max()


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("sizes", [(5, 0, 300, 1), (100, 100, 100, 100), (0, 0, 0, 17)])
def test_grouped_products_and_gradients(rng, dtype, bound, sizes):
    rows, width, out_width = 512, 256, 384
    lhs = jnp.asarray(rng.normal(size=(rows, width)), dtype)
    rhs = jnp.asarray(rng.normal(size=(len(sizes), width, out_width)) / 16, dtype)
    weight = jnp.asarray(rng.normal(size=(rows, out_width)), dtype)
    groups = jnp.asarray(sizes, jnp.int32)
    owner = np.repeat(np.arange(len(sizes)), sizes)

    def ours(lhs, rhs):
        return (kernels.grouped_matmul(lhs, rhs, groups) * weight).astype(jnp.float32).sum()

    def plain(lhs, rhs):
        lhs, rhs = (x.astype(jnp.float32) for x in (lhs, rhs))
        used = jnp.einsum(
            "md,mdf->mf", lhs[: len(owner)], rhs[owner], precision=jax.lax.Precision.HIGHEST
        )
        return (used * weight[: len(owner)].astype(jnp.float32)).sum()

    got = jax.jit(jax.value_and_grad(ours, (0, 1)))(lhs, rhs)
    want = jax.jit(jax.value_and_grad(plain, (0, 1)))(lhs, rhs)
    jax.tree.map(lambda g, w: close(g, w, bound), got[1], want[1])


@pytest.mark.parametrize("how", [{}, {"window": 200}, {"softcap": 20.0}, {"chunk": 96}])
def test_attention_and_gradients(rng, how):
    """In bfloat16 and long enough for the platform's kernel, against XLA's in float32."""
    shapes = [(2, 512, n, 64) for n in (8, 2, 2)]
    q, k, v = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in shapes)
    starts = rng.random((2, 512)) < 0.01
    ids = jnp.asarray(np.cumsum(starts, 1) + 1, jnp.int32)
    weight = jnp.asarray(rng.normal(size=(2, 512, 8, 64)), jnp.float32)

    def loss(attend, q, k, v):
        out = attend(q, k, v, scale=0.125, segment_ids=ids, **how)
        return (out.astype(jnp.float32) * weight).sum()

    got = jax.jit(jax.grad(lambda *x: loss(kernels.attend, *x), (0, 1, 2)))(q, k, v)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    want = jax.jit(jax.grad(lambda *x: loss(attention.attend, *x), (0, 1, 2)))(*wide)
    jax.tree.map(lambda g, w: close(g, w, 3e-2), got, want)


@pytest.mark.parametrize("kind", ["dense", "mla_moe", "delta"])
def test_training_on_a_mesh_of_one_equals_the_cpu(kind, accelerator, cpu):
    """Three steps in float32: the same losses to 1e-4."""
    cfg = CONFIGS[kind]
    model, optimizer = zoo.Decoder(cfg), make_optimizer(Optimizer(warmup=0), 10)
    step = make_step(model, optimizer, Balance())
    tokens = np.random.default_rng(0).integers(1, cfg.vocab_size, (2, 25)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:],
        "segment_ids": np.ones((2, 24), np.int32),
        "positions": np.broadcast_to(np.arange(24, dtype=np.int32), (2, 24)),
    }  # fmt: skip

    def losses(device):
        found = []
        with jax.default_device(device), sharding.use(zoo.make_mesh("data=1", [device])):
            state = create_state(model, optimizer, 0, jax.device_put(random_params(model), device))
            for _ in range(3):
                state, metrics = step(state, jax.device_put(batch, device))
                found.append(float(metrics["loss"]))
        return found

    assert losses(accelerator) == pytest.approx(losses(cpu), rel=1e-4)
