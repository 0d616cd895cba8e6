import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests import examples
from tests.training.conftest import config, moe
from zoo.moe import MoEStats
from zoo.training.optimizer import make_optimizer
from zoo.training.settings import Balance, Optimizer
from zoo.training.step import (
    create_state,
    further_losses,
    make_step,
    move_biases,
    token_losses,
)

SPEC = Optimizer(learning_rate=3e-3, warmup=2)


BALANCE = Balance()


@functools.cache
def prepared(model, balance=BALANCE, accumulate=1, spec=SPEC):
    """A step, compiled once, and a function that makes the state before it."""
    optimizer = make_optimizer(spec, 100)
    step = make_step(model, optimizer, balance, accumulate)
    return step, jax.jit(lambda: create_state(model, optimizer, seed=0))


def trained(model, batch, steps=1, **kwargs):
    step, begin = prepared(model, **kwargs)
    state = begin()
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def once(sparse, batch):
    return trained(sparse, batch)


def assert_close(a, b, atol):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol, rtol=1e-4), a, b)


def test_loss_falls_and_state_counts(sparse, batch):
    state, last = trained(sparse, batch, steps=20)
    assert int(state.step) == 20
    assert last["loss"] < np.log(97) - 0.5


def test_multi_token_prediction_learns_the_token_after_the_next(sparse, batch):
    layer = sparse.cfg.layers[-1]
    model = sparse.clone(cfg=dataclasses.replace(sparse.cfg, mtp=(layer, layer)))
    optimizer = make_optimizer(SPEC, 100)
    state = jax.jit(lambda: create_state(model, optimizer, seed=0))()
    step = make_step(model, optimizer, Balance(), mtp_loss=0.3)
    state, first = step(state, batch)
    for _ in range(20):
        state, last = step(state, batch)
    assert last["mtp_loss"] < first["mtp_loss"] - 0.3


def test_further_losses_are_next_token_losses_shifted(sparse, batch):
    """Depth 0 sees hidden state t and token t + 1, and is to predict token t + 2."""
    model = sparse.clone(cfg=dataclasses.replace(sparse.cfg, mtp=(sparse.cfg.layers[0],)))
    params = examples.random_params(model)
    tokens, ids = batch["tokens"], batch["segment_ids"]

    @jax.jit
    def both(params, batch):
        out, _ = token_losses(model, params, batch)
        total, _ = further_losses(model, params, batch, out.hidden)
        known = jnp.roll(tokens, -1, axis=1)
        drafted = model.apply(
            params, 0, out.hidden, known, ids, batch["positions"] + 1, method="draft"
        ).hidden
        return total, jax.nn.log_softmax(model.apply(params, drafted, method="logits"))

    total, prob = jax.device_get(both(params, batch))
    wanted = sum(
        -prob[b, t, tokens[b, t + 2]]
        for b in range(tokens.shape[0])
        for t in range(tokens.shape[1] - 2)
        if ids[b, t] == ids[b, t + 1] == ids[b, t + 2] > 0
    )
    assert float(total) == pytest.approx(float(wanted), rel=1e-5)


def test_first_loss_is_the_mean_over_targets(sparse, batch, once):
    params = prepared(sparse)[1]().params
    apply = jax.jit(sparse.apply)
    out = apply(params, batch["tokens"], batch["segment_ids"], batch["positions"])
    real = batch["targets"] >= 0
    prob = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(out.logits)), np.maximum(batch["targets"], 0)[..., None], -1
    )[..., 0]
    assert once[1]["loss"] == pytest.approx(-prob[real].mean(), rel=1e-5)
    assert once[1]["tokens"] == (batch["segment_ids"] > 0).sum()


def test_accumulation_equals_the_big_batch(sparse, batch, once):
    """Rows differ in how many targets they have, so a mean of means would not pass."""
    state, metrics = trained(sparse, batch, accumulate=4)
    assert metrics == pytest.approx(once[1], rel=1e-4)
    moments = jax.tree.leaves(state.opt_state), jax.tree.leaves(once[0].opt_state)
    assert_close(*moments, atol=1e-6)
    assert_close(
        jax.tree.leaves(state.params["params"]["stack_1"]["layer_0"]["moe"]["bias"]),
        jax.tree.leaves(once[0].params["params"]["stack_1"]["layer_0"]["moe"]["bias"]),
        atol=0,
    )


def test_tied_head_gets_the_gradient_of_both_ends(batch):
    state, metrics = trained(zoo.Decoder(config(zoo.MLP(32), tie=True)), batch, steps=10)
    assert "head" not in state.params["params"]
    assert metrics["loss"] < np.log(97)


def test_bfloat16_computes_and_keeps_float32_masters(sparse, batch, once):
    model = dataclasses.replace(sparse, dtype=jnp.bfloat16)
    state, metrics = trained(model, batch)
    kinds = {str(x.dtype) for x in jax.tree.leaves((state.params, state.opt_state))}
    assert kinds == {"float32", "int32"}
    assert metrics["loss"] == pytest.approx(once[1]["loss"], rel=0.02)
    assert metrics["loss"] != once[1]["loss"]
    before = prepared(model)[1]().params["params"]["head"]["w"]
    moved = np.asarray(state.params["params"]["head"]["w"] - before)
    assert 0 < np.abs(moved).max() < 2 * SPEC.learning_rate


def test_state_is_donated(sparse, batch):
    step, begin = prepared(sparse)
    state = begin()
    step(state, batch)
    assert jax.tree.leaves(state.params)[0].is_deleted()


def test_biases_move_by_the_sign_of_what_is_missing():
    load = jnp.array([[4.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 9.0]])
    stats = {"stack_1": {"layer_0": MoEStats(load, load, jnp.array([4.0, 6.0]))}}
    bias = jnp.array([[0.5, 0.0, -0.25, 0.0], [0.0, 0.0, 0.0, 1.0]])
    params = {"stack_1": {"layer_0": {"moe": {"bias": {"b": bias}, "router": {}}}}, "head": {}}
    moved = move_biases(params, stats, 0.125)["stack_1"]["layer_0"]["moe"]["bias"]["b"]
    np.testing.assert_array_equal(moved, [[0.375, 0.125, -0.25, 0.0], [0.125, 0.125, 0.125, 0.875]])
    assert params["stack_1"]["layer_0"]["moe"]["bias"]["b"] is bias


def test_a_step_moves_biases_by_rate_and_by_nothing_else(once):
    bias = np.asarray(once[0].params["params"]["stack_1"]["layer_0"]["moe"]["bias"]["b"])
    assert set(np.unique(np.abs(bias))) <= {0.0, np.float32(Balance().bias_rate)}
    assert np.abs(bias).any()


def test_bias_rule_balances_a_router_that_was_not(batch):
    model = zoo.Decoder(config(moe()))
    spec = Optimizer(learning_rate=1e-12, warmup=0)
    _, first = trained(model, batch, balance=Balance(bias_rate=0.02), spec=spec)
    _, last = trained(model, batch, steps=60, balance=Balance(bias_rate=0.02), spec=spec)
    assert last["imbalance"] < 0.5 * first["imbalance"]


def test_auxiliary_loss_balances_too(batch):
    model = zoo.Decoder(config(moe(score="softmax", select_bias=False)))
    balance = Balance(aux_loss=1.0)
    _, first = trained(model, batch, balance=balance)
    _, last = trained(model, batch, steps=40, balance=balance)
    assert last["aux_loss"] < first["aux_loss"]
    # Two where loads are even; a little less where they and the probabilities differ oppositely.
    assert last["aux_loss"] == pytest.approx(2.0, abs=0.02)
    assert last["imbalance"] < first["imbalance"]
