"""Rounding parameters: its bounds, products with what it leaves, and models made of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from zoo import kernels, quantized_cpu
from zoo.axes import rules_in_force
from zoo.describe import shapes
from zoo.inference import generate, unstack
from zoo.inference.sampling import from_options
from zoo.quantized import E4M3, Quantized, each_quantized
from zoo.rounding import METHODS, encode, method, place, quantize

IS_NODE = {"is_leaf": lambda value: isinstance(value, Quantized)}


def dequantized(params):
    """The floats that quantised parameters stand for."""
    return each_quantized(lambda leaf: leaf.dequantize(jnp.float32), params)


def node(w, name, group=None):
    where = place("stack_0/layer_0/attn/o/w", w.shape)
    return encode(lambda index: w[index], where, method(name, group))


@pytest.mark.parametrize(
    ("name", "group", "bits"), [("int8", None, 8), ("int4", 6, 4), ("int4", 8, 4), ("fp8", None, 8)]
)
def test_rounds_to_nearest_within_half_a_step(rng, name, group, bits):
    """[2 layers, 4 heads, 6] to 10 outputs: groups of 8 inputs cut heads, and 24 is 3 of them."""
    w = rng.normal(0, 0.1, (2, 4, 6, 10)).astype(np.float32)
    w[0, :, :, 3] = 0
    found = node(w, name, group)
    error = np.abs(found.dequantize(jnp.float32) - w)
    assert found.shape == w.shape
    assert found.codes.nbytes * 8 == w.size * bits
    step = np.repeat(np.abs(np.float32(found.scales)), found.form.block[1], axis=-1)  # [L, R, C]
    step = step.swapaxes(-1, -2).reshape(w.shape)
    if name == "fp8":
        step = np.maximum(np.abs(w) / 8, step * 2.0**-9)  # three bits of mantissa
    top = np.float32(found.scales) * (7.5 if name == "int4" else np.inf)
    top = np.repeat(top, found.form.block[1], axis=-1).swapaxes(-1, -2).reshape(w.shape)
    inside = np.where(top > 0, w < top, w > top)  # beyond 7 there is no number
    assert inside.mean() > 0.9
    assert (error[inside] <= step[inside] / 2 * 1.01).all()
    assert (error <= step * 1.05).all()
    assert not found.dequantize(jnp.float32)[0, :, :, 3].any()


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    ("name", "group", "integer"),
    [
        ("int8", None, True),
        ("int8", 6, False),
        ("int4", 8, False),
        ("int4", 6, False),
        ("fp8", None, False),
    ],
)
def test_products_are_those_of_the_floats_that_are_meant(rng, name, group, integer, rows):
    held = node(rng.normal(0, 0.1, (24, 10)).astype(np.float32)[None, :, None], name, group)
    held = jax.tree.map(lambda leaf: leaf[0], held)
    x = jnp.asarray(rng.normal(0, 1, (rows, 24)), jnp.float32).at[-1].multiply(1e-3)
    assert quantized_cpu.serves(held.form, held.codes, rows) == integer
    assert not quantized_cpu.serves(held.form, held.codes, 129)
    w = held.form.dequantize(held.codes, held.scales, None, jnp.float32)
    want = np.float64(x) @ np.float64(w).T
    parts = held.codes, held.scales, held.zeros, held.form
    for dtype, bound in ((jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)):
        got = kernels.quantized_matmul(x.astype(dtype), *parts)
        assert got.dtype == dtype
        close = np.abs(got - want) <= bound * np.abs(want).max(-1, keepdims=True)
        assert close.all()

    def product(x):
        return kernels.quantized_matmul(x, *parts).sum()

    np.testing.assert_allclose(jax.grad(product)(x)[0], w.sum(0), rtol=1e-5, atol=1e-6)


def test_digits_are_float32(rng):
    x = rng.normal(0, 1, (3, 50)).astype(np.float32)
    x[1] = 0
    digits, largest = quantized_cpu.to_digits(jnp.asarray(x), 3)
    weights = 254.0 ** -np.arange(3) / 127
    found = np.tensordot(weights, np.float64(digits), 1) * np.float64(largest)
    np.testing.assert_allclose(found, x, atol=2e-7 * np.abs(x).max())


def test_a_model_computes_with_what_was_rounded():
    """In the decoder's scan, as with the floats that the codes stand for."""
    model = zoo.Decoder(CONFIGS["mla_moe"])
    params = random_params(model)
    made = quantize(params, "int8")
    tokens = jax.random.randint(jax.random.key(7), (2, 24), 0, model.cfg.vocab_size)
    apply = jax.jit(model.apply)
    want, exact = apply(dequantized(made), tokens).logits, apply(params, tokens).logits
    got = apply(made, tokens).logits
    scale = np.abs(want).max()
    assert np.abs(got - want).max() < 1e-5 * scale
    assert np.abs(exact - want).max() > 1e-3 * scale


def test_numbers_by_their_bits_are_those_of_the_type():
    bits = np.arange(256, dtype=np.uint8)
    found = jax.jit(E4M3().numbers, static_argnums=1)(bits.view(np.int8), jnp)
    np.testing.assert_array_equal(found, np.float32(bits.view(jnp.float8_e4m3fn)))


@pytest.mark.parametrize(
    ("kind", "how", "prompts"),
    [("dense", method("int4", 8), [[5, 17, 80], [3]]), ("moe", method("fp8"), [[5, 17, 80]])],
)
def test_generates_with_what_was_rounded(kind, how, prompts):
    """Layer by layer, prompts and single tokens, of several texts and of one."""
    model = zoo.Decoder(CONFIGS[kind])
    made = quantize(random_params(model), how)
    got, want = (zoo.generate(model, params, prompts, 8) for params in (made, dequantized(made)))
    assert got == want


def test_generation_makes_no_floats_of_all_layers_or_experts():
    """A prompt's and a token's programs hold a few matrices at a time."""
    model = zoo.Decoder(
        zoo.config_from_hf(
            dict(
                model_type="qwen3_moe", vocab_size=64, hidden_size=512, intermediate_size=1024,
                moe_intermediate_size=256, num_experts=8, num_experts_per_tok=2, head_dim=128,
                num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1,
                mlp_only_layers=[0],
            )
        )
    )  # fmt: skip
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes(model.cfg))
    model, held = unstack.prepare(model, quantize(params, "int4"))
    tokens, lengths = generate.pad([[1]])
    program = generate._program.lower(
        model, held, tokens, lengths, from_options(), np.zeros(0, np.int32), jax.random.key(0),
        generate._How(8, jnp.dtype(jnp.float32), rules_in_force()),
    )  # fmt: skip
    floats = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert program.compile().memory_analysis().temp_size_in_bytes < floats / 5


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_what_stays_as_it_is(kind):
    params = random_params(zoo.Decoder(CONFIGS[kind]))
    flat = jax.tree_util.tree_flatten_with_path(quantize(params, "int8"), **IS_NODE)[0]
    for keys, leaf in flat:
        path = "/".join(key.key for key in keys[1:])
        rounded = isinstance(leaf, Quantized)
        floats = ("embed", "head", "router", "shared_gate", "k_up", "v_up", "indexer", "conv")
        assert rounded == (path.endswith("/w") and not any(name in path for name in floats)), path
    small = sum(leaf.nbytes for leaf in jax.tree.leaves(quantize(params, "int4")))
    assert small < 0.6 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_what_cannot_be_rounded_is_named():
    assert list(METHODS) == ["int8", "int4", "fp8"]
    params = random_params(zoo.Decoder(CONFIGS["mla"]))
    with pytest.raises(ValueError, match="quantize='int3' is not one of int8, int4, fp8"):
        quantize(params, "int3")
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantize(params), "int8")
