"""Layers on the stages of a mesh do what they do on one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from tests.examples import random_params
from zoo import pipeline, sharding, stacks
from zoo.training import losses
from zoo.training.settings import Balance
from zoo.training.step import create_state, make_step, state_shardings

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


def toy(w, x, context):
    """A layer whose order matters, and whose aux tells it from others."""
    made = jnp.tanh(x @ w + context)
    return made, (made * w[0]).sum()


def toy_loss(run):
    """What `run` of (w, x, context) makes, with all gradients that there are."""

    def loss(w, x, context):
        made, aux = run(w, x, context)
        return (made**2).sum() + (aux * jnp.arange(len(aux))).sum(), (made, aux)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize(
    ("stages", "rounds", "microbatches", "remat"),
    [
        (2, 1, 4, jax.checkpoint_policies.nothing_saveable),
        (4, 2, 4, None),
        (4, 6, 8, None),
        (3, 4, 4, jax.checkpoint_policies.nothing_saveable),
    ],
)
def test_every_schedule_runs_all_layers_in_order(stages, rounds, microbatches, remat, rng):
    """Outputs, aux by layer, and gradients of weights and inputs; and no copies of weights stay."""
    layers, dim = 24, 64
    w = rng.normal(0, 1 / dim**0.5, (layers, dim, dim)).astype(np.float32)
    x, context = rng.normal(0, 1, (2, 8, dim)).astype(np.float32)
    want = toy_loss(lambda w, x, c: jax.lax.scan(lambda x, w: toy(w, x, c), x, w))(w, x, context)
    with sharding.use(zoo.make_mesh(f"stage={stages}", jax.devices()[:stages])):
        run = lambda *args: pipeline.run(toy, *args, microbatches, rounds, remat)  # noqa: E731
        program = toy_loss(run).lower(w, x, context).compile()
        close(program(w, x, context), want, 1e-5)
    assert program.memory_analysis().temp_size_in_bytes < 2 * w.nbytes


def test_gradients_in_bfloat16_add_up_over_stages(rng):
    """XLA on CPU ends the process at a sum of bfloat16 over some axes of a mesh."""
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 4, jnp.bfloat16)  # noqa: E731
    inputs = draw(2, 16, 16), draw(8, 16), draw(8, 16)
    want = toy_loss(lambda w, x, c: jax.lax.scan(lambda x, w: toy(w, x, c), x, w))(*inputs)
    with sharding.use(zoo.make_mesh("stage=2,fsdp=4")):
        got = toy_loss(lambda *args: pipeline.run(toy, *args, 2))(*inputs)
    assert got[1][1].dtype == jnp.bfloat16
    close(*(jax.tree.map(np.float32, found) for found in (got, want)), 0.05)


def test_a_train_step_in_stages_equals_one_device():
    """Losses, gradient norm, parameters and routers' balance after three steps of SGD."""
    mesh, batch = zoo.make_mesh("stage=2,data=2,fsdp=2"), rows()
    optimizer = optax.sgd(0.3)

    def train(model, placed=None):
        step = make_step(model, optimizer, Balance(bias_rate=0.01), placed=placed)
        state = create_state(model, optimizer, 0, random_params(model), placed)
        found = []
        for _ in range(3):
            state, metrics = step(state, batch)
            found.append(metrics)
        return state.params, found

    want = train(zoo.Decoder(CONFIG))
    model = zoo.Decoder(CONFIG, remat=jax.checkpoint_policies.nothing_saveable, rounds=2)
    with sharding.use(mesh):
        got = train(model, state_shardings(model, optimizer, mesh))
        assert losses._sharing() == 4  # each stage has the logits of all rows
    shard = got[0]["params"]["stack_1"]["layer_0"]["attn"]["q"]["w"].addressable_shards[0]
    assert shard.data.shape[0] == 4 // 2
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


def test_bubble_of_rounds():
    assert pipeline.bubble(4, 4) == 3 / 7
    assert pipeline.bubble(4, 4, 2) == 3 / 11
    assert pipeline.bubble(1, 4) == 0


def test_microbatches_nobody_asks_for_have_a_row_for_every_device():
    assert pipeline.check(8, 32, 2, None, 1) == 8
    assert pipeline.check(8, 32, 2, None, 1, parts=8) == 4
    assert pipeline.check(8, 2, 4, None, 1, parts=8) == 2


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((4, 8, 4, 3, 1), "microbatches=3 do not divide a batch of 8 rows: 2 or 4 would"),
        ((24, 8, 4, 4, 4), "rounds=4 do not divide the 6 .* of 24: rounds could be 1, 2, 3, 6"),
        ((8, 8, 4, 2, 2), "microbatches=2 are fewer than stage=4.* at least 4 of a batch of 8"),
    ],
)
def test_schedules_that_do_not_fit_say_what_would(asked, says):
    with pytest.raises(ValueError, match=says):
        pipeline.check(*asked)


def test_stages_that_no_stack_divides_are_refused():
    with pytest.raises(ValueError, match="layers=4 does not divide by stage=8"):
        sharding.shardings(CONFIG, zoo.make_mesh("stage=8"))


def test_stages_and_shared_rows_together_are_refused():
    model = zoo.Decoder(CONFIG)
    with sharding.use(zoo.make_mesh("stage=4,context=2")):
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        with pytest.raises(ValueError, match="stage=4, context=2: layers in stages cannot share"):
            jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((8, 12), jnp.int32))


@pytest.mark.parametrize("axes", ["fsdp=2, expert=2", "fsdp=2, tensor=2"])
def test_experts_that_would_end_the_process_are_refused(monkeypatch, axes):
    """XLA fails a check over them where JAX cannot lay out activations in a stage."""
    monkeypatch.setattr(stacks, "LAYS_OUT", False)
    model = zoo.Decoder(CONFIG)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    says = f"stage=2: JAX .* cannot cut experts over {axes} in stages: update JAX"
    with sharding.use(zoo.make_mesh(f"stage=2,{axes}")), pytest.raises(ValueError, match=says):
        jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((8, 12), jnp.int32))
