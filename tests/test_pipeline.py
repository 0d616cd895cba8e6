"""Layers on the stages of a mesh do what they do on one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from tests.examples import random_params
from zoo import pipeline, sharding
from zoo.training.settings import Balance
from zoo.training.step import create_state, make_step

ATTENTION = zoo.Attention(2, 1, 8, zoo.Rope(8), window=5)
EXPERTS = zoo.MoE(4, 2, 16, score="sigmoid", select_bias=True)
CONFIG = zoo.Config(
    97, 32,
    (
        zoo.Stack(1, (zoo.Layer(ATTENTION, zoo.MLP(24)),)),
        zoo.Stack(4, (zoo.Layer(ATTENTION, EXPERTS),)),
    ),
)  # fmt: skip
"""A stack that is too short for stages and one that is not, as DeepSeek has them."""
DENSE = zoo.Config(97, 32, (zoo.Stack(4, (zoo.Layer(ATTENTION, zoo.MLP(40)),)),))


def rows(count=8, length=12):
    tokens = jax.random.randint(jax.random.key(1), (count, length + 1), 0, 97)
    ids = np.repeat([[1, 2, 0]] * count, [5, length - 7, 2], axis=1)
    targets = np.where(ids > 0, tokens[:, 1:], -1)
    positions = np.broadcast_to(np.arange(length), ids.shape)
    batch = dict(tokens=tokens[:, :-1], targets=targets, segment_ids=ids, positions=positions)
    return {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}


def close(got, want, bound):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=bound * max(float(np.abs(b).max()), 1e-2))


@pytest.mark.parametrize(
    ("cfg", "mesh", "microbatches", "remat"),
    [
        (DENSE, "stage=4,data=2", 4, jax.checkpoint_policies.nothing_saveable),
        (CONFIG, "stage=2,data=2,fsdp=2", None, None),
    ],
    ids=["four_stages", "experts"],
)
def test_a_train_step_in_stages_equals_one_device(cfg, mesh, microbatches, remat):
    """Losses, gradient norm, parameters and routers' balance after three steps of SGD."""
    mesh, batch = zoo.make_mesh(mesh), rows()
    optimizer = optax.sgd(0.3)

    def train(model, state):
        step = make_step(model, optimizer, Balance(bias_rate=0.01))
        found = []
        for _ in range(3):
            state, metrics = step(state, batch)
            found.append(metrics)
        return state.params, found

    def start(model):
        return create_state(model, optimizer, 0, random_params(model))

    whole = zoo.Decoder(cfg)
    want = train(whole, start(whole))
    model = zoo.Decoder(cfg, remat=remat, microbatches=microbatches)
    state = start(model)
    placed = sharding.shardings(cfg, mesh)
    state = state.replace(params=jax.tree.map(jax.device_put, state.params, placed))
    last = state.params["params"][f"stack_{len(cfg.stacks) - 1}"]
    shard = last["layer_0"]["attn"]["q"]["w"].addressable_shards[0]
    assert shard.data.shape[0] == 4 // mesh.shape["stage"]
    with sharding.use(mesh):
        got = train(model, state)
    close(got, want, 2e-5)


def test_no_stage_is_sent_the_layers_of_another():
    """What travels are activations [..., 12, 32] and nothing else, one microbatch at a time."""
    model, mesh = zoo.Decoder(DENSE, microbatches=4), zoo.make_mesh("stage=4,data=2")
    placed = sharding.shardings(DENSE, mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)), placed,
    )  # fmt: skip
    tokens = jax.ShapeDtypeStruct(
        (8, 12), jnp.int32, sharding=sharding.batch_sharding(mesh, None, 8)
    )
    with sharding.use(mesh):
        text = jax.jit(model.apply).lower(params, tokens).compile().as_text()
    found = re.findall(r" = (\S+) (?:all-\w+|reduce-scatter|collective-permute)\(", text)
    shapes = [shape.split("{")[0] for shape in found]
    assert "f32[1,12,32]" in shapes
    assert all(shape.endswith(",12,32]") for shape in shapes)


def test_microbatches_and_bubble():
    assert pipeline.bubble(4, 4) == 3 / 7
    assert pipeline.bubble(1, 4) == 0
    model = zoo.Decoder(CONFIG, microbatches=3)
    with sharding.use(zoo.make_mesh("stage=4,data=2")):
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        tokens = jax.ShapeDtypeStruct((8, 12), jnp.int32)
        with pytest.raises(ValueError, match="microbatches=3 do not divide a batch of 8 rows"):
            jax.eval_shape(model.apply, params, tokens)


def test_stages_that_no_stack_divides_are_refused():
    with pytest.raises(ValueError, match="layers=4 does not divide by stage=8"):
        sharding.shardings(CONFIG, zoo.make_mesh("stage=8"))


def test_stages_and_shared_rows_together_are_refused():
    model = zoo.Decoder(CONFIG)
    with sharding.use(zoo.make_mesh("stage=4,context=2")):
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        with pytest.raises(ValueError, match="context=2: stage=4 cannot share rows"):
            jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((8, 12), jnp.int32))
