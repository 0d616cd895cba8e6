"""Splash attention, interpreted on CPU, against plain attention; and when it is not used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from zoo import attention, attention_tpu, kernels

SHAPE = B, K, G, T, H = 2, 2, 2, 256, 16


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = SHAPE, (B, K, T, H), (B, K, T, 8), (B, K, G, T, 8)
    return [jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(
    ("segmented", "window", "softcap"), [(False, None, None), (True, 40, None), (False, 150, 20.0)]
)
def test_equals_plain_attention_and_its_gradients(inputs, segmented, window, softcap):
    q, k, v, grad = inputs
    starts = np.random.default_rng(0).random((B, T)) < 0.02
    ids = jnp.asarray(np.cumsum(starts, 1) + 1, jnp.int32) if segmented else None
    sight = attention.Sight(ids, None)
    out, saved = attention.causal_forward(q, k, v, sight, None, window, softcap)
    want = out, *attention.causal_backward(window, softcap, saved, grad)[:3]
    how = dict(window=window, softcap=softcap, interpret=True)
    got = (
        attention_tpu.causal(q, k, v, ids, **how),
        *attention_tpu.causal_gradients(q, k, v, ids, grad, **how),
    )
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= 0.015 * np.abs(b).max()


def exported(platform, dtype, length, **how):
    shapes = [jax.ShapeDtypeStruct((B, length, n, H), dtype) for n in (4, 2, 2)]

    def loss(q, k, v):
        return kernels.attend(q, k, v, scale=0.25, **how).astype(jnp.float32).sum()

    grad = jax.jit(jax.grad(loss, (0, 1, 2)))
    return export.export(grad, platforms=[platform])(*shapes).mlir_module()


def test_is_chosen_when_a_program_is_lowered_for_tpu():
    assert exported("tpu", jnp.bfloat16, 256).count("tpu_custom_call") >= 3
    assert "tpu_custom_call" not in exported("cuda", jnp.bfloat16, 256)


@pytest.mark.parametrize(
    ("dtype", "length", "how"),
    [
        (jnp.float32, 256, {}),
        (jnp.bfloat16, 128, {}),
        (jnp.bfloat16, 300, {}),
        (jnp.bfloat16, 256, {"sinks": jnp.ones((4,))}),
        (jnp.bfloat16, 256, {"allowed": jnp.ones((B, 256, 256), bool)}),
    ],
)
def test_is_left_where_it_cannot(dtype, length, how):
    assert "tpu_custom_call" not in exported("tpu", dtype, length, **how)
