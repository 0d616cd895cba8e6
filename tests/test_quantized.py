"""Quantised parameters: what codes mean, and that nodes go where arrays go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from zoo.hf.stored import PartView
from zoo.hf.table import Linear, Split
from zoo.quantized import FP4, Form, Ints, Quantized, Whole, is_quantized, multipliers

HALVES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def test_fp4_low_half_first():
    codes = jnp.arange(256, dtype=jnp.uint8)[:, None]
    low, high = FP4().numbers(codes, jnp).T
    signed = HALVES + tuple(-value for value in HALVES)
    np.testing.assert_array_equal(low, [signed[byte % 16] for byte in range(256)])
    np.testing.assert_array_equal(high, [signed[byte // 16] for byte in range(256)])
    assert np.signbit(low[8])  # minus zero


@pytest.mark.parametrize("bits", [4, 8])
def test_ints_lowest_bits_first(bits, rng):
    words = rng.integers(-(2**31), 2**31, (3, 4)).astype(np.int32)
    found = Ints(bits).numbers(jnp.asarray(words), jnp)
    per = 32 // bits
    for row in range(3):
        for column in range(4 * per):
            word = int(words[row, column // per]) % 2**32
            digit = word // 2 ** (bits * (column % per)) % 2**bits
            assert found[row, column] == digit - 2 ** (bits - 1)


@pytest.mark.parametrize("kind", [np.uint8, ml_dtypes.float8_e8m0fnu])
def test_scales_of_one_byte_are_powers_of_two(kind):
    scales = np.arange(255, dtype=np.uint8).view(kind)
    for xp in (np, jnp):
        np.testing.assert_array_equal(multipliers(scales, xp), 2.0 ** (np.arange(255.0) - 127))


@pytest.mark.parametrize("block", [(3, 4), (1, 10), (7, 10), (128, 128)])
def test_blocks_may_be_cut_short(block, rng):
    form = Form((2, 7, 10), Whole(), block)
    codes = rng.integers(-128, 128, form.codes_shape).astype(np.int8)
    scales = rng.random(form.grid).astype(np.float32)
    found = form.dequantize(jnp.asarray(codes), jnp.asarray(scales), None, jnp.float32)
    for index in np.ndindex(form.shape):
        e, r, c = index
        scale = scales[e, r // block[0], c // block[1]]
        assert found[index] == np.float32(codes[index]) * scale


@pytest.fixture
def node(rng) -> Quantized:
    """Values of 4 heads of 3 beside keys of 5, from a rank of 6, in 2 layers: [2, 6, 4, 3]."""
    form = Form((4 * (5 + 3), 6), Whole(), (5, 4))
    view = PartView(Split(-1, Linear()), ((6, 4, 5), (6, 4, 3)), 1)
    codes = rng.integers(-128, 128, (2, *form.codes_shape)).astype(np.int8)
    scales = rng.random((2, *form.grid)).astype(np.float32)
    return Quantized(jnp.asarray(codes), jnp.asarray(scales), None, form, view)


def test_a_part_of_a_tensor(node):
    found = node.dequantize(jnp.float32)
    assert found.shape == node.shape == (2, 6, 4, 3)
    whole = node.form.dequantize(node.codes, node.scales, None, jnp.float32)
    assert found[1, 2, 3, 0] == whole[1, 3 * 8 + 5 + 0, 2]


def test_nodes_go_through_transformations(node):
    wanted = node.dequantize(jnp.float32)
    abstract = jax.eval_shape(lambda n: n, node)
    assert abstract.shape == (2, 6, 4, 3)
    assert is_quantized({"a": [abstract]})
    same = jax.jit(lambda n: n)(node)
    np.testing.assert_array_equal(same.dequantize(jnp.float32), wanted)
    _, layers = jax.lax.scan(lambda _, layer: (None, layer.dequantize(jnp.float32)), None, node)
    np.testing.assert_array_equal(layers, wanted)
