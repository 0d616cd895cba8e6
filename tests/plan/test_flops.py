"""Operations: by hand, and what XLA counts of our programs against what the mathematics needs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import zoo
from tests.test_grouped import executed_flops
from zoo import kernels
from zoo.describe import shapes
from zoo.plan import flops


@pytest.mark.parametrize("past", [0, 3, 20])
@pytest.mark.parametrize(("window", "chunk"), [(None, None), (5, None), (None, 4), (100, None)])
def test_visible_pairs_one_by_one(past, window, chunk):
    pairs = 0
    for at in range(past, past + 9):
        seen = range(at + 1)
        seen = [s for s in seen if window is None or at - s < window]
        pairs += len([s for s in seen if chunk is None or s // chunk == at // chunk])
    assert flops.visible(9, past, window, chunk) == pairs


def test_forward_by_hand():
    """One layer: q 8x8, k and v 8x4, o 8x8, norms, two of six experts of 3 x 8 x 5, a router."""
    layer = zoo.Layer(zoo.Attention(4, 2, 2, None), zoo.MoE(6, 2, 5))
    cfg = zoo.Config(11, 8, (zoo.Stack(3, (layer,)),))
    found = flops.forward(cfg, 2, 10)
    assert found.weights == 2 * 3 * 2 * 10 * (64 + 2 * 32 + 64 + 2 * 8 + 8 * 6)
    assert found.experts == 2 * 3 * 2 * 10 * 2 * 3 * 8 * 5
    assert found.attention == 2 * 3 * 2 * 55 * 4 * 2 * 2
    assert found.head == 2 * 2 * 10 * 8 * 11
    assert flops.forward(cfg, 2, 10, logits=1).head == found.head / 10


def counted_by_xla(cfg, batch, length):
    """XLA's cost analysis of a forward pass, with no loop that hides layers."""
    model = zoo.Decoder(cfg, dtype=jnp.bfloat16, unroll=99)
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    lowered = jax.jit(lambda p, t: model.apply(p, t).logits).lower(shapes(cfg), tokens)
    return lowered.cost_analysis()["flops"]


def shallow(name):
    """A preset of full width and two layers."""
    cfg = zoo.config(name)
    stack = dataclasses.replace(cfg.stacks[-1], repeats=2)
    return dataclasses.replace(cfg, stacks=(stack,), mtp=())


@pytest.mark.parametrize("name", ["llama-3.1-8b", "mistral-7b-v0.1"])
def test_xla_counts_at_most_a_twentieth_more_for_dense(name):
    cfg = shallow(name)
    ratio = counted_by_xla(cfg, 1, 4096) / flops.forward(cfg, 1, 4096).total
    assert 1 <= ratio <= 1.05


def test_xla_counts_at_most_a_seventh_more_for_experts(rng):
    """The experts' loops run over data, so what they execute is followed, beside XLA's count."""
    cfg, tokens = shallow("mixtral-8x7b"), 8192
    spec = cfg.layers[0].ffn
    rest = counted_by_xla(cfg, 2, tokens // 2)
    sizes = jnp.asarray(rng.multinomial(tokens * spec.top_k, [1 / spec.experts] * spec.experts))
    small = jnp.ones((tokens * spec.top_k, 4)), jnp.ones((spec.experts, 4, 3))
    executed = executed_flops(kernels.grouped_matmul, *small, sizes.astype(jnp.int32)) / (4 * 3)
    experts = 2 * 3 * executed * cfg.embed_dim * spec.hidden
    ratio = (rest + experts) / flops.forward(cfg, 2, tokens // 2).total
    assert 1 <= ratio <= 1.15
