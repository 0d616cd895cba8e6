import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.training.optimizer import decay_mask, learning_rate, make_optimizer
from zoo.training.settings import Optimizer


def rates(steps, **kwargs):
    spec = Optimizer(learning_rate=2.0, **kwargs)
    return [float(learning_rate(spec, steps, t)) for t in range(1, steps + 1)]


def test_cosine_by_hand():
    found = rates(10, warmup=2, final=0.1)
    cosine = [2 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2) for k in range(1, 9)]
    np.testing.assert_allclose(found, [1.0, 2.0, *cosine], rtol=1e-6)
    assert found[5] == pytest.approx(1.1)
    assert found[-1] == pytest.approx(0.2)


def test_wsd_by_hand():
    found = rates(10, schedule="wsd", warmup=2, decay=4, final=0.5)
    np.testing.assert_allclose(found, [1, 2, 2, 2, 2, 2, 1.75, 1.5, 1.25, 1], rtol=1e-6)


def test_constant_by_hand():
    np.testing.assert_allclose(rates(4, schedule="constant", warmup=0), [2.0] * 4)


def test_matrices_decay_and_nothing_else_does(params):
    mask = decay_mask(params["params"])
    layer = mask["stack_1"]["layer_0"]
    assert layer["attn"]["q"]["w"]
    assert layer["moe"]["gate"]["w"]
    assert layer["moe"]["router"]["w"]
    assert mask["head"]["w"]
    assert not layer["moe"]["bias"]["b"]
    assert not layer["attn_norm"]["scale"]
    assert not mask["final_norm"]["scale"]
    assert not mask["embed"]["table"]
    assert decay_mask(params["params"], embeddings=True)["embed"]["table"]


def test_first_update_is_adamw_by_hand(params):
    """The first Adam step is lr * (sign(g) + decay * w), up to eps."""
    spec = Optimizer(learning_rate=0.01, warmup=0, schedule="constant", weight_decay=0.3, clip=None)
    tree = params["params"]
    optimizer = make_optimizer(spec, 10)
    grads = jax.tree.map(jnp.ones_like, tree)
    updates, _ = optimizer.update(grads, optimizer.init(tree), tree)
    attn, w = updates["stack_0"]["layer_0"]["attn"], tree["stack_0"]["layer_0"]["attn"]
    np.testing.assert_allclose(attn["q"]["w"], -0.01 * (1 + 0.3 * w["q"]["w"]), rtol=1e-4)
    np.testing.assert_allclose(updates["embed"]["table"], -0.01, rtol=1e-4)
    np.testing.assert_allclose(updates["stack_1"]["layer_0"]["ffn_norm"]["scale"], -0.01, rtol=1e-4)


def test_selection_bias_is_neither_updated_nor_given_moments(params):
    tree = params["params"]
    optimizer = make_optimizer(Optimizer(), 10)
    state = optimizer.init(tree)
    grads = jax.tree.map(jnp.ones_like, tree)
    updates, _ = optimizer.update(grads, state, tree)
    assert not np.any(updates["stack_1"]["layer_0"]["moe"]["bias"]["b"])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not any("['bias']" in path for path in paths)


def test_clipping_bounds_the_global_norm():
    tree = {"a": {"w": jnp.array([3.0, 4.0])}}
    plain = optax.adamw(1.0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0)
    spec = Optimizer(learning_rate=1.0, warmup=0, schedule="constant", weight_decay=0.0, clip=0.5)
    optimizer = make_optimizer(spec, 10)
    state, expected = optimizer.init(tree), plain.init(tree)
    small = jax.tree.map(lambda g: g * 0.01, tree)
    for grads, clipped in ((tree, jax.tree.map(lambda g: g / 10, tree)), (small, small)):
        found, state = optimizer.update(grads, state, tree)
        wanted, expected = plain.update(clipped, expected, tree)
        np.testing.assert_allclose(found["a"]["w"], wanted["a"]["w"], rtol=1e-5)
