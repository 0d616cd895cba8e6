"""Experts over devices: all tokens arrive, equal to one device, and nothing but tokens travels."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

import zoo
from tests.test_grouped import of_gpus
from zoo import expert_parallel, owners, sharding
from zoo.axes import partition_spec, unboxed
from zoo.config import MoE
from zoo.layered import Layered
from zoo.moe import MixtureOfExperts
from zoo.plan import hlo

EVERYTHING = MoE(16, 3, 32, bias=True, router_bias=True, weigh_input=True)


def mixture(spec: MoE, rows: int, skew: float = 0.0):
    """A loss that every output moves, parameters and tokens, and logical axes of both.

    Tokens are f32[rows, 6, 48]; `skew` pushes them to the first experts.
    """
    module, rng = MixtureOfExperts(spec, 48), np.random.default_rng(1)
    x = rng.normal(size=(rows, 6, 48)).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)
    boxed = jax.eval_shape(module.init, jax.random.key(0), x)
    random = lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(random, unboxed(boxed))
    params["params"]["router"]["b"] -= skew * np.arange(spec.experts, dtype=np.float32)

    @jax.value_and_grad
    def loss(both):
        y, stats = module.apply(both["params"], both["x"])
        return (y * weights).sum() + stats.prob @ jnp.arange(spec.experts)

    axes = {"params": nn.get_partition_spec(boxed), "x": PartitionSpec("batch", None, None)}
    return loss, {"params": params, "x": x}, axes


def placed_on(mesh, rules, axes):
    rules = sharding.find_rules(rules)
    named = lambda names: NamedSharding(mesh, partition_spec(names, rules))  # noqa: E731
    return jax.tree.map(named, axes, is_leaf=lambda x: isinstance(x, PartitionSpec))


def assert_close(got, want):
    def compare(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 1e-3))

    jax.tree.map(compare, *jax.device_get((got, want)))


@functools.cache
def alone():
    loss, both, _ = mixture(EVERYTHING, 8)
    return jax.jit(loss)(both)


@pytest.mark.parametrize(
    ("spec", "rules"),
    [
        ("data=2,fsdp=2,expert=2", None),
        ("expert=4,tensor=2", None),
        ("fsdp=8", None),
        ("fsdp=4,tensor=2", {"batch": "fsdp", "experts": ("fsdp", "tensor")}),
        ("fsdp=4,tensor=2", {"batch": "fsdp", "mlp": ("fsdp", "tensor")}),
    ],
)
def test_gradients_equal_those_of_one_device(spec, rules):
    loss, both, axes = mixture(EVERYTHING, 8)
    mesh = zoo.make_mesh(spec)
    lie = placed_on(mesh, rules, axes)
    with sharding.use(mesh, rules):
        got = jax.jit(loss, out_shardings=(None, lie))(jax.device_put(both, lie))
    assert_close(got, alone())


def test_turns_padding_and_a_crowded_expert_lose_no_token(monkeypatch):
    """Three rows on eight devices, most tokens for one of them, which has room for five rows; in
    those that it does not fill is anything."""
    loss, both, _ = mixture(EVERYTHING, rows=3, skew=2.0)
    want = jax.jit(loss)(both)
    monkeypatch.setattr(owners, "SLACK", 0)
    monkeypatch.setattr(owners, "LEAST", 5)
    monkeypatch.setattr(jax.lax, "empty", lambda shape, dtype: jnp.full(shape, jnp.nan, dtype))
    taken, in_turns = [], owners._Parted.in_turns

    def counted(self, turn, start):
        def one(at, state):
            jax.debug.callback(lambda at: taken.append(int(at)), at)
            return turn(at, state)

        return in_turns(self, one, start)

    monkeypatch.setattr(owners._Parted, "in_turns", counted)
    with sharding.use(zoo.make_mesh("expert=8")):
        got = jax.jit(loss)(both)
    assert_close(got, want)
    assert max(taken) >= 5
    assert len(taken) == 2 * 8 * (max(taken) + 1)  # forward and backward, each device as often


def test_gradients_reach_the_experts_of_one_layer_among_those_of_all(rng):
    """As decoding has them: on devices that own experts, and on one."""
    x, weights = rng.normal(size=(8, 2, 16)), rng.uniform(size=(8, 2, 3))
    experts = rng.permuted(np.broadcast_to(np.arange(8), (8, 2, 8)), axis=-1)[..., :3]
    shapes = (2, 8, 16, 24), (2, 8, 16, 24), (2, 8, 24, 16)
    wholes = tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)

    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def loss(wholes, x, weights):
        matrices = (Layered(whole, jnp.int32(1)) for whole in wholes)
        return jnp.square(expert_parallel.expert_mlp(x, experts, weights, *matrices)).sum()

    given = wholes, x.astype(np.float32), weights.astype(np.float32)
    want = jax.jit(loss)(*given)
    with sharding.use(zoo.make_mesh("expert=8")):
        got = jax.jit(loss)(*given)
    assert_close(got, want)
    assert all(np.abs(grad[1]).max() > 0 == np.abs(grad[0]).max() for grad in want[0])


def gradient_on(mesh):
    """The gradient of eight experts on eight devices, of eight rows of six tokens; its inputs."""
    loss, both, axes = mixture(MoE(8, 2, 28, router_bias=True), rows=8)
    lie = placed_on(mesh, "expert", axes)
    given = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), both, lie
    )
    return jax.jit(loss, out_shardings=(None, lie)), given


def test_only_tokens_travel_between_the_owners_of_experts():
    """From the compiled program: what is gathered is the router's, what is exchanged tokens'.

    Beside that, devices tell each other how many rows they have for which experts.
    """
    mesh = zoo.make_mesh("expert=8")
    gradient, given = gradient_on(mesh)
    with sharding.use(mesh, "expert"):
        lines = gradient.lower(given).compile().as_text().splitlines()

    def moved(kind: str) -> list[tuple[list[str], str]]:
        """The arrays that each collective of a kind gives, and the rest of its line."""
        found = (re.search(rf"= (.*?) {kind}(?:-start)?\((.*)", line) for line in lines)
        return [(re.findall(r"\w+\[[\d,]*\]", m[1]), m[2]) for m in found if m]

    assert {a for arrays, _ in moved("all-gather") for a in arrays} == {
        "f32[48,8]", "f32[8]", "s32[8,8,1]"
    }  # fmt: skip
    assert not moved("collective-permute")
    assert not moved("reduce-scatter")
    for arrays, rest in moved("all-reduce"):
        assert hlo._group(rest) == [0] or not {"f32[1,48,28]", "f32[1,28,48]"} & set(arrays)
    # There and back, forward and backward: for each device the six tokens that it has at most. What
    # backward sends again is what forward sent, which XLA knows.
    exchanges = sorted(tuple(arrays) for arrays, _ in moved("all-to-all"))
    assert exchanges == [("f32[6,48]",) * 8] * 4 + [("f32[6]",) * 8] * 2


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_send_only_the_rows_that_there_are(platform):
    mesh = sharding.abstract_mesh("expert=8")
    if platform == "cuda":
        mesh = AbstractMesh(mesh.axis_sizes, mesh.axis_names, mesh.axis_types, **of_gpus())
    gradient, given = gradient_on(mesh)
    rules = sharding.activation_rules(sharding.find_rules("expert"))
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(rules):
        text = gradient.trace(given).lower(lowering_platforms=(platform,)).as_text()
    shapes = re.findall(r"@ragged_all_to_all.* : \(tensor<(\w+)>, tensor<(\w+)>", text)
    there, back = ("12x48xf32", "48x48xf32"), ("48x48xf32", "12x48xf32")
    weights = [("12xf32", "48xf32")] * 2 + [("48xf32", "12xf32")]
    assert sorted(shapes) == sorted([there] * 3 + [back] * 2 + weights)
    gathered = re.findall(r"all_gather.* -> tensor<(\w+)>", text)
    assert set(gathered) == {"8x8x1xi32"}
