"""Quantised parameters: what codes mean, and that nodes go where arrays go."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from zoo import kernels, quantized_cpu
from zoo.hf.stored import PartView
from zoo.hf.table import Interleave, Linear, Same, Split
from zoo.quantized import FP4, Form, Ints, Matrix, Quantized, Whole, is_quantized, multipliers

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


def random_node(rng, form, view):
    """Any codes, scales and zero points of a form."""

    def words(shape):
        return jnp.asarray(rng.integers(-(2**31), 2**31, shape).astype(np.int32))

    whole = isinstance(form.encoding, Whole)
    codes = rng.integers(-128, 128, form.codes_shape).astype(np.int8) if whole else None
    codes = words(form.codes_shape) if codes is None else jnp.asarray(codes)
    scales = jnp.asarray(rng.random(form.grid).astype(np.float32))
    return Quantized(codes, scales, form.zeros and words(form.zeros_shape), form, view)


ROWS, COLUMNS = 768, 512
FORMS = {
    "fp8": Form((ROWS, COLUMNS), Whole(), (128, 128)),
    "int4": Form((ROWS, COLUMNS), Ints(4), (1, 32)),
    "gptq": Form((ROWS, COLUMNS), Ints(4), (1, 32), False, Ints(4, plus=1), -2),
    "awq": Form((ROWS, COLUMNS), Ints(4, interleaved=True), (32, 1), True, Ints(4, 0, True)),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", list(FORMS))
def test_products_make_few_floats_at_a_time(name, rows, rng):
    form = FORMS[name]
    held = random_node(rng, form, Matrix((COLUMNS, ROWS), 1))
    parts = held.codes, held.scales, held.zeros
    x = jnp.asarray(rng.normal(size=(rows, COLUMNS)), jnp.float32)
    product = jax.jit(lambda x, *parts: kernels.quantized_matmul(x, *parts, form))
    want = np.float64(x) @ np.float64(held.dequantize(jnp.float32))
    np.testing.assert_allclose(product(x, *parts), want, atol=1e-5 * np.abs(want).max())
    needs = product.lower(x, *parts).compile().memory_analysis().temp_size_in_bytes
    assert needs < 4 * ROWS * COLUMNS  # the floats, of which some are made in several steps
    assert quantized_cpu.parts(form) == 3


@pytest.mark.parametrize(("name", "heads"), [("fp8", 6), ("gptq", 6), ("gptq", 256), ("awq", 6)])
def test_products_of_heads_are_those_of_their_floats(name, heads, rng):
    """Also where a word of zero points is of several heads."""
    form = FORMS[name]
    held = random_node(rng, form, Matrix((COLUMNS, heads, ROWS // heads), 1))
    parts, w = (held.codes, held.scales, held.zeros), held.dequantize(jnp.float32)
    for axis, how in ((1, "mnr,rnh->mnh"), (0, "mnh,rnh->mnr")):
        size = COLUMNS if axis else ROWS // heads
        x = jnp.asarray(rng.normal(size=(2, heads, size)), jnp.float32)
        found = jax.jit(lambda x, *p, axis=axis: kernels.head_matmul(x, *p, form, axis))(x, *parts)
        want = np.einsum(how, np.float64(x), np.float64(w))
        np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


def test_outputs_that_share_a_block_are_one_part():
    assert quantized_cpu.parts(Form((300, 8), Whole(), (128, 8))) == 1
    assert quantized_cpu.parts(Form((256, 8), Whole(), (128, 8))) == 2
    assert quantized_cpu.parts(Form((24, 8), Whole(), (1, 8))) == 1
    assert quantized_cpu.parts(Form((4 * 97, 8), Whole(), (1, 8))) == 2
    words = Form((60, 8), Ints(4), (1, 8), zeros=Ints(4), zeros_axis=-2)
    assert quantized_cpu.parts(words) == 1
    assert quantized_cpu.parts(replace(words, shape=(64, 8))) == 2


@pytest.mark.parametrize(
    ("op", "shapes", "block", "stands"),
    [
        (Split(-1, Linear()), ((6, 4, 4), (6, 4, 8)), (4, 4), True),  # heads of keys and values
        (Split(-1, Linear()), ((6, 4, 5), (6, 4, 3)), (4, 4), False),  # whose blocks they share
        (Split(-1, Linear()), ((6, 12), (6, 9)), (4, 4), True),  # the last block is cut short
        (Split(-1, Linear()), ((6, 12), (6, 9)), (1, 6), True),
        (Split(-1, Linear()), ((6, 12), (6, 9)), (21, 6), True),  # one scale for all
        (Split(0, Linear(2)), ((2, 3, 5), (4, 3, 5)), (1, 18), False),  # columns
        (Interleave(Same()), ((8, 3), (8, 3)), (1, 3), False),  # inputs are rows
    ],
)
def test_rows_of_a_tensor_stand_alone(op, shapes, block, stands, rng):
    form = Form(op.disk(shapes), Whole(), block)
    for index in range(2):
        node = random_node(rng, form, PartView(op, shapes, index))
        found = node.alone()
        assert found.shape == node.shape
        assert isinstance(found.view, Matrix) == stands
        wanted = node.dequantize(jnp.float32)
        np.testing.assert_array_equal(found.dequantize(jnp.float32), wanted)
        if stands:
            assert found.codes.size == node.codes.size * wanted.size // np.prod(form.shape)


def test_an_expert_of_a_tensor_is_seen_alone(rng):
    op, shapes = Interleave(Same()), ((8, 4), (8, 4))
    form = Form((8, 8), Whole(), (1, 8))
    node = random_node(rng, form, PartView(op, shapes, 1, each=True))
    node = jax.tree.map(lambda x: jnp.stack((x, x + 1)), node)
    assert node.shape == (2, 8, 4)
    parts = node.codes, node.scales
    whole = [form.dequantize(c, s, None, jnp.float32) for c, s in zip(*parts, strict=True)]
    np.testing.assert_array_equal(node.dequantize(jnp.float32), np.stack(whole)[..., 1::2])
