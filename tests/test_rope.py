"""Rotations against complex arithmetic, and scalings against the papers' formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import pairs
from zoo.config import LinearScaling, Llama3Scaling, Rope, YarnScaling
from zoo.rope import frequencies, rotate, tables, yarn_mscale


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_multiplication_by_a_unit_complex_number(rng, interleaved):
    rope, positions = Rope(8, interleaved=interleaved), jnp.array([[0, 1, 50]])
    x = rng.normal(size=(1, 3, 2, 12)).astype(np.float32)
    got = np.asarray(rotate(jnp.asarray(x), *tables(rope, positions, jnp.float32), interleaved))
    turned = x[..., :8]
    pairs = (turned[..., 0::2], turned[..., 1::2]) if interleaved else np.split(turned, 2, -1)
    angles = np.array([0, 1, 50])[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    want = (pairs[0] + 1j * pairs[1]) * np.exp(1j * angles)[None, :, None]
    np.testing.assert_allclose(got[..., :8], np.concatenate((want.real, want.imag), -1), atol=1e-5)
    np.testing.assert_array_equal(got[..., 8:], x[..., 8:])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pairs_come_apart_alike_on_all_platforms(rng, dtype):
    """To the last bit, and so do their gradients."""
    x, *grads = (jnp.asarray(rng.normal(size=(2, 3, n)), dtype) for n in (16, 8, 8))
    (want, back), (got, back_by_product) = (
        jax.vjp(function, x) for function in (pairs.apart, pairs.by_product)
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)
    np.testing.assert_array_equal(back_by_product(grads)[0], back(grads)[0])


def test_scores_depend_on_distance_only(rng):
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(at, to):
        turn = [tables(Rope(16), jnp.array([[p]]), jnp.float32) for p in (at, to)]
        return float((rotate(q, *turn[0]) * rotate(k, *turn[1])).sum())

    assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-3)


def test_linear_divides_every_frequency():
    plain, _ = frequencies(Rope(16))
    scaled, factor = frequencies(Rope(16, scaling=LinearScaling(4.0)))
    np.testing.assert_array_equal(scaled, plain / 4)
    assert factor == 1.0


def test_llama3_keeps_short_waves_divides_long_and_blends_between():
    rope = Rope(128, 500_000.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))
    plain, _ = frequencies(Rope(128, 500_000.0))
    scaled, _ = frequencies(rope)
    wavelength = 2 * math.pi / plain.astype(np.float64)
    smooth = np.clip((8192 / wavelength - 1) / 3, 0, 1)
    np.testing.assert_allclose(scaled, plain * ((1 - smooth) / 8 + smooth), rtol=1e-6)
    assert (scaled[:20] == plain[:20]).all()
    np.testing.assert_allclose(scaled[-20:] * 8, plain[-20:], rtol=1e-6)


def test_llama3_without_a_ramp_divides_long_waves_only():
    """Llama 4 Scout: both factors are 1."""
    plain, _ = frequencies(Rope(128, 500_000.0))
    scaled, _ = frequencies(Rope(128, 500_000.0, scaling=Llama3Scaling(16.0, 1.0, 1.0, 8192)))
    long = 2 * math.pi / plain.astype(np.float64) > 8192
    assert 0 < long.sum() < 64
    np.testing.assert_array_equal(scaled, np.where(long, plain / 16, plain))


def test_yarn_of_deepseek_v3():
    """64 dims, factor 40, original length 4096, betas 32 and 1: the ramp spans dims 10 to 23."""
    rope = Rope(64, scaling=YarnScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0))
    plain, _ = frequencies(Rope(64))
    scaled, factor = frequencies(rope)
    assert factor == 1.0
    np.testing.assert_allclose(scaled[:11], plain[:11], rtol=1e-6)
    np.testing.assert_allclose(scaled[23:] * 40, plain[23:], rtol=1e-6)
    ramp = (np.arange(32) - 10) / 13
    want = plain * (np.clip(ramp, 0, 1) / 40 + 1 - np.clip(ramp, 0, 1))
    np.testing.assert_allclose(scaled, want, rtol=1e-5)


def test_yarn_without_mscale_all_dim_scales_cos_and_sin():
    _, factor = frequencies(Rope(64, scaling=YarnScaling(32.0, 4096)))
    assert factor == yarn_mscale(32.0) == 0.1 * math.log(32.0) + 1
    _, factor = frequencies(Rope(64, scaling=YarnScaling(32.0, 4096, attention_factor=1.25)))
    assert factor == 1.25
    assert yarn_mscale(0.5) == 1.0


def test_yarn_guards_an_empty_ramp():
    """Kimi K2: beta_fast = beta_slow = 1 may round to a ramp of no width."""
    scaling = YarnScaling(32.0, 4096, beta_fast=1.0, beta_slow=1.0)
    assert np.isfinite(frequencies(Rope(64, 50_000.0, scaling=scaling))[0]).all()
