"""Meshes by name, rules that say what they cannot do, one program on eight devices."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import zoo
from tests.examples import CONFIGS, random_params
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
        ("data=3", "there are 8: make the sizes multiply to 8"),
        ("data=3,fsdp=-1", "holds 3 device.s. times -1"),
    ],
)
def test_make_mesh_refuses(spec, says):
    with pytest.raises(ValueError, match=says):
        zoo.make_mesh(spec)


def test_every_parameter_has_logical_axes(cfg):
    params = shapes(cfg)
    axes = sharding.logical_axes(cfg)
    is_spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)  # noqa: E731
    ranks = jax.tree.map(lambda p: p.ndim, params)
    named = jax.tree.map(len, axes, is_leaf=is_spec)
    assert ranks == named
    names = {n for spec in jax.tree.leaves(axes, is_leaf=is_spec) for n in spec}
    assert names <= set(sharding.LOGICAL_AXES)


def test_rules_refuse_what_does_not_divide():
    mesh = zoo.make_mesh("tensor=-1")
    with pytest.raises(ValueError, match=r"\['attn'\]\['o'\].*heads=6 does not divide by 8"):
        sharding.shardings(CONFIGS["dense"], mesh, {"heads": "tensor"})
    with pytest.raises(ValueError, match="unknown logical axis 'head'"):
        sharding.shardings(CONFIGS["dense"], mesh, {"head": "tensor"})
    with pytest.raises(ValueError, match="maps to 'model', which the mesh lacks"):
        sharding.shardings(CONFIGS["dense"], mesh, {"heads": "model"})


@pytest.mark.parametrize("kind", ["dense", "mla_moe"])
def test_sharded_equals_single(kind):
    cfg = CONFIGS[kind]
    model = zoo.Decoder(cfg)
    tokens = jax.random.randint(jax.random.key(7), (8, 12), 0, cfg.vocab_size)
    params = random_params(model)

    def loss(params, tokens):
        return model.apply(params, tokens).logits.var()

    want, slope = jax.jit(jax.value_and_grad(loss))(params, tokens)
    mesh = zoo.make_mesh("data=2,fsdp=4")
    placed = jax.tree.map(jax.device_put, params, sharding.shardings(cfg, mesh))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.activation_rules()):
        got, spread = jax.jit(jax.value_and_grad(loss))(placed, jax.device_put(tokens, rows))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(spread), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(float(np.abs(b).max()), 1e-3))
    shard = placed["params"]["head"]["w"] if "head" in placed["params"] else None
    if shard is not None:
        assert shard.addressable_shards[0].data.shape == (cfg.embed_dim // 4, cfg.vocab_size)
