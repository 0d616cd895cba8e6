"""Adapters: a model that has them is at first what it was, and then what it is merged."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from tests.programs import cached_logits, close, whole
from tests.test_mesh import made as batched
from tests.test_mesh import mesh_of
from zoo import lora, sharding
from zoo.training.optimizer import make_optimizer
from zoo.training.settings import Balance, Optimizer
from zoo.training.step import create_state, make_step, state_shardings

TARGETS = {"dense": None, "mla_moe": ("*/*", "moe/shared/*")}
"""By default, and everything: experts and their router, too."""
MODELS = CONFIGS | {"mla_moe": replace(CONFIGS["mla_moe"], stacks=CONFIGS["mla_moe"].stacks[1:])}
RANK, ALPHA = 3, 6.0


def is_adapted(x):
    return isinstance(x, lora.Adapted)


def adapted(params, kind, seed=None):
    """With adapters, whose second matrix is zeros, or random by a seed."""
    params = lora.adapt(params, RANK, ALPHA, jax.random.key(1), TARGETS[kind])
    if seed is None:
        return params
    rng = np.random.default_rng(seed)

    def fill(node):
        if not is_adapted(node):
            return node
        b = jnp.asarray(rng.normal(0, 0.1, node.b.shape), jnp.float32)
        return lora.Adapted(node.base, node.a, b, node.scale)

    return jax.tree.map(fill, params, is_leaf=is_adapted)


@pytest.fixture(scope="module", params=list(TARGETS))
def case(request):
    """A kind, its model as a function, parameters, and tokens i32[2, 24]."""
    model = zoo.Decoder(MODELS[request.param])
    tokens = jax.random.randint(jax.random.key(7), (2, 24), 0, model.cfg.vocab_size)
    return request.param, model, jax.jit(model.apply), random_params(model), np.asarray(tokens)


def test_at_first_it_is_the_same_model(case):
    kind, _, apply, params, tokens = case
    found = apply(adapted(params, kind), tokens).logits
    np.testing.assert_array_equal(found, apply(params, tokens).logits)


def test_merged_is_the_same_model_with_and_without_a_cache(case):
    kind, model, apply, params, tokens = case
    both = adapted(params, kind, seed=2)
    plain = lora.merged(both)
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    wanted = np.asarray(apply(plain, tokens).logits)
    assert np.abs(wanted - apply(params, tokens).logits).max() > 1e-2
    close(apply(both, tokens).logits, wanted)
    if kind == "mla_moe":  # absorbed, which needs whole matrices
        close(cached_logits(model, both, tokens), wanted)


@pytest.mark.parametrize("how", [None, "int4"])
def test_sums_are_made_by_layers(how):
    """Of experts too, and as `merged` makes them."""
    up = jax.random.normal(jax.random.key(0), (2, 4, 16, 8), jnp.bfloat16)
    params = {"params": {"stack_0": {"layer_0": {"moe": {"up": {"w": up}}}}}}
    params = params if how is None else zoo.quantize(params, how)
    both = lora.adapt(params, RANK, ALPHA, jax.random.key(1), ("moe/up",))
    both = jax.tree.map(lambda x: x + 0.1 if x.dtype == jnp.float32 else x, both)
    (made,), (wanted,) = jax.tree.leaves(lora.sums(both)), jax.tree.leaves(lora.merged(both))
    assert (made.shape, made.dtype) == (wanted.shape, wanted.dtype)
    assert wanted.dtype == (jnp.bfloat16 if how is None else jnp.float32)
    np.testing.assert_allclose(made[(1,)], wanted[1], rtol=1e-6)
    np.testing.assert_allclose(made[(1, 2)], wanted[1, 2], rtol=1e-6)


def test_gradients_follow_from_those_of_the_whole(case):
    """dA = scale * dW B^T and dB = scale * A^T dW, for every layer and expert."""
    kind, model, _, params, tokens = case
    both = adapted(params, kind, seed=2)
    found = whole(model)(both, tokens).gradients
    nodes, grads = (
        dict(jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_adapted))
        for tree in (both, found)
    )
    grads = {path: grad for path, grad in grads.items() if is_adapted(grad)}
    assert grads
    for path, grad in grads.items():
        node, lead = nodes[path], nodes[path].shape[: nodes[path].lead]
        a = node.a.reshape(*lead, -1, RANK)
        b = node.b.reshape(*lead, RANK, -1)
        dw = grad.base.reshape(*lead, a.shape[-2], b.shape[-1])
        scale = ALPHA / RANK
        close(grad.a, np.asarray(scale * dw @ b.swapaxes(-1, -2)).reshape(node.a.shape), 1e-4)
        close(grad.b, np.asarray(scale * a.swapaxes(-1, -2) @ dw).reshape(node.b.shape), 1e-4)


def test_what_learns_is_the_adapters_and_without_any_everything():
    model = zoo.Decoder(CONFIGS["mla_moe"])
    params = random_params(model)
    learnt, frozen = lora.split(params)
    assert learnt is params
    assert not jax.tree.leaves(frozen)
    both = adapted(params, "dense")
    learnt, frozen = lora.split(both)
    leaves = jax.tree_util.tree_leaves_with_path(learnt)
    names = {"/".join(k.key for k in path[3:]) for path, _ in leaves}
    assert {"attn/kv_down/w/a", "attn/o/w/b", "mlp/up/w/a", "moe/shared/down/w/b"} <= names
    assert not any("router" in name or name.startswith(("moe/gate", "moe/up")) for name in names)
    assert len(leaves) + len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(both))
    joined = lora.join(learnt, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(both)
    assert lora.merged(params) is params


def test_types_stay_and_sums_are_rounded_once():
    params = random_params(zoo.Decoder(CONFIGS["dense"], param_dtype=jnp.bfloat16))
    both = adapted(params, "dense", seed=2)
    w = both["params"]["stack_0"]["layer_0"]["mlp"]["up"]["w"]
    assert (w.base.dtype, w.a.dtype, w.b.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    found = lora.merged(both)["params"]["stack_0"]["layer_0"]["mlp"]["up"]["w"]
    exact = np.asarray(w.base, np.float64) + 2 * np.asarray(w.a, np.float64) @ np.asarray(w.b)
    np.testing.assert_array_equal(found, exact.astype(np.float32).astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("attn/q", "attn/qu"), "'attn/qu' is no linear map; .* has attn/k, attn/o, attn/q"),
        (("head",), "'head' is no linear map"),
        ((), r"targets=\(\) name no linear map: name some of attn/k"),
    ],
)
def test_targets_that_are_not_there_are_named(targets, message):
    params = random_params(zoo.Decoder(CONFIGS["dense"]))
    with pytest.raises(ValueError, match=message):
        lora.adapt(params, 2, 4.0, jax.random.key(0), targets)


def test_adapters_on_a_mesh_equal_one_device():
    """Of output projections tensor cuts inputs, of others outputs; fsdp cuts the other side."""
    model, params, batch = batched("dense")
    both = adapted(jax.device_put(params), "dense")
    optimizer = make_optimizer(Optimizer(learning_rate=3e-3, warmup=2), 10)

    def losses(batch, mesh=None):
        placed = mesh and state_shardings(model, optimizer, mesh, params=both)
        step = make_step(model, optimizer, Balance(), placed=placed)
        state, seen = create_state(model, optimizer, 0, jax.tree.map(jnp.copy, both), placed), []
        for _ in range(4):
            state, metrics = step(state, batch)
            seen.append(float(metrics["loss"]))
        return np.array(seen), state

    wanted, _ = losses(batch)
    mesh = mesh_of("fsdp=2,tensor=2")
    with sharding.use(mesh):
        found, state = losses(jax.device_put(batch, sharding.batch_sharding(mesh, None, 8)), mesh)
    assert wanted[-1] < wanted[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    q = state.params["params"]["stack_0"]["layer_0"]["attn"]["q"]["w"]
    assert (q.a.sharding.spec[1:], q.b.sharding.spec[1:]) == (
        ("fsdp", None),
        (None, "tensor", None),
    )
