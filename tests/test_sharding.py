"""Meshes by name, rules that say what they cannot do, one program on eight devices."""

import jax
import numpy as np
import pytest
from jax.experimental import topologies

import zoo
from tests.examples import CONFIGS
from zoo import cache as caches
from zoo import sharding
from zoo.describe import shapes


def test_make_mesh_fills_and_orders_axes():
    mesh = zoo.make_mesh("fsdp=-1,data=2")
    assert dict(mesh.shape) == {
        "data": 2, "fsdp": 4, "expert": 1, "tensor": 1, "context": 1, "stage": 1,
    }  # fmt: skip
    assert zoo.make_mesh("data=1", devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fdsp=8", "unknown axis 'fdsp'; axes are data, fsdp"),
        ("data=2,data=4", "'data' is named twice"),
        ("data=two", "'data=two' needs a positive size"),
        ("data=0", "'data=0' needs a positive size"),
        ("data=-1,fsdp=-1", "only one axis can be -1"),
        ("data=-1x4", "'data=-1x4' needs a positive size"),
        ("data=3", "there are 8: make the sizes multiply to 8"),
        ("data=3,fsdp=-1", "holds 3 device.s. times -1"),
    ],
)
def test_make_mesh_refuses(spec, says):
    with pytest.raises(ValueError, match=says):
        zoo.make_mesh(spec)


def test_sizes_across_and_within_slices_multiply():
    assert zoo.make_mesh("data=2x2,fsdp=2").shape == zoo.make_mesh("data=4,fsdp=2").shape
    sizes = sharding.mesh_sizes("data=2x3,fsdp=2x-1", 48)
    assert (sizes["data"], sizes["fsdp"]) == (6, 8)


def test_axes_join_slices(monkeypatch):
    """Two slices of four chips each, as TPU's compiler describes them."""
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2)

    def slices(spec: str) -> list:
        devices = zoo.make_mesh(spec, found.devices).devices.squeeze()
        return np.vectorize(lambda device: device.slice_index)(devices).tolist()

    assert slices("fsdp=4,data=2") == [[0] * 4, [1] * 4]
    assert slices("tensor=2,fsdp=4") == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert slices("fsdp=2x2,data=2") == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert slices("tensor=2x4") == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="over 2 slices: make one of data, stage, fsdp a multiple"):
        zoo.make_mesh("tensor=8", found.devices)
    with pytest.raises(ValueError, match=r"over 2 slices: .* \(fsdp=4x\) are to multiply to 2"):
        zoo.make_mesh("fsdp=4x2", found.devices)


def test_every_parameter_has_logical_axes(cfg):
    params = shapes(cfg)
    axes = sharding.logical_axes(cfg)
    is_spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)  # noqa: E731
    ranks = jax.tree.map(lambda p: p.ndim, params)
    named = jax.tree.map(len, axes, is_leaf=is_spec)
    assert ranks == named
    names = {n for spec in jax.tree.leaves(axes, is_leaf=is_spec) for n in spec}
    assert names <= set(sharding.LOGICAL_AXES)


def test_rules_say_what_does_not_divide_and_what_would():
    mesh = zoo.make_mesh("tensor=-1")
    with pytest.raises(ValueError, match="rules do not fit the mesh") as refused:
        sharding.shardings(CONFIGS["dense"], mesh)
    lines = str(refused.value).splitlines()
    assert lines[0] == "rules do not fit the mesh:"
    assert sorted(line.split(": ", 1)[1] for line in lines[1:]) == [
        "heads=6 does not divide by tensor=8: 6 would, or a rule that maps 'heads' to None",
        "kv_heads=2 does not divide by tensor=8: 2 would, or a rule that maps 'kv_heads' to None",
        "vocab=97 does not divide by tensor=8: 1 or 97 would, or a rule that maps 'vocab' to None",
    ]
    assert "stack_0/layer_0/attn/k/w: kv_heads" in str(refused.value)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"head": "tensor"}, "unknown logical axis 'head'"),
        ({"heads": "model"}, "'heads' maps to 'model', which the mesh lacks"),
        ("fsdp_tensors", "did you mean 'fsdp_tensor'.*Tables are data, fsdp"),
    ],
)
def test_rules_refuse(rules, says):
    with pytest.raises(ValueError, match=says):
        sharding.shardings(CONFIGS["dense"], zoo.make_mesh("tensor=-1"), rules)


def test_the_earlier_of_two_rules_has_a_mesh_axis():
    rules = {"embed": "fsdp", "rank": ("fsdp", "tensor"), "heads": "tensor"}
    spec = lambda *names: tuple(sharding.partition_spec(names, rules))  # noqa: E731
    assert spec("embed", "rank") == ("fsdp", None)
    assert spec("rank", "heads", "head_dim") == (("fsdp", "tensor"), None, None)
    assert spec("vocab", "embed") == (None, "fsdp")


def test_batches_say_what_would_divide():
    mesh = zoo.make_mesh("data=2,fsdp=-1")
    assert sharding.batch_sharding(mesh, "fsdp", 16).shard_shape((16, 3)) == (2, 3)
    with pytest.raises(ValueError, match="12 rows does not divide over data=2 x fsdp=4: 8 or 16"):
        sharding.batch_sharding(mesh, "fsdp", 12)
    with pytest.raises(ValueError, match="4 rows does not divide over data=2 x fsdp=4: 8 would"):
        sharding.batch_sharding(mesh, "fsdp", 4)


def test_a_mesh_axis_without_a_rule_is_refused():
    says = "mesh axis tensor=8 is in no rule"
    with pytest.raises(ValueError, match=says), sharding.use(zoo.make_mesh("tensor=8"), "fsdp"):
        pass


def test_an_abstract_mesh_needs_no_devices():
    mesh = sharding.abstract_mesh("fsdp=256,expert=16")
    placed = sharding.shardings(zoo.config("deepseek-v3"), mesh)["params"]
    gate = placed["stack_1"]["layer_0"]["moe"]["gate"]["w"]
    assert gate.shard_shape((58, 256, 7168, 2048)) == (58, 16, 28, 2048)
    with pytest.raises(ValueError, match="say how many devices fsdp has"):
        sharding.abstract_mesh("fsdp=-1")


def test_nothing_is_whole_on_a_device():
    """Parameters and caches are made in parts, in programs that hold no more."""
    cfg, mesh = CONFIGS["mla_moe"], zoo.make_mesh("fsdp=2,expert=2,tensor=2")
    rules = dict(sharding.RULES["fsdp_tensor_expert"], vocab=None)
    placed = sharding.shardings(cfg, mesh, rules)
    made = sharding.init(zoo.Decoder(cfg), jax.random.key(0), mesh, rules)
    want = jax.jit(zoo.Decoder(cfg).init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    for leaf, sharding_, one in zip(*map(jax.tree.leaves, (made, placed, want)), strict=True):
        assert leaf.sharding == sharding_
        np.testing.assert_allclose(leaf, one, atol=1e-6)
    gate = made["params"]["stack_1"]["layer_0"]["moe"]["gate"]["w"]
    assert gate.addressable_shards[0].data.shape == (2, 4, cfg.embed_dim // 2, 14)
    with sharding.use(mesh, rules):
        cache = caches.init(CONFIGS["dense"], 8, 16, np.dtype("int8"))
    k = cache.stacks["stack_0"]["layer_0"].k
    parts = [leaf.addressable_shards[0].data.shape for leaf in k]
    assert parts == [(3, 2, 1, 16, 16), (3, 2, 1, 16, 1)]
    want = sharding.cache_shardings(cache, mesh, rules)
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), cache, want)
    assert all(jax.tree.leaves(same))
