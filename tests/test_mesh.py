"""One program on eight devices equals one device: a model's steps, its gradients, its cache."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from zoo import cache as caches
from zoo import sharding, stacks
from zoo.config import MLP, Layer, MoE, Stack
from zoo.training.settings import Balance
from zoo.training.step import TrainState, make_step


def single(kind: str, *ffns) -> zoo.Config:
    """Two layers of a kind's attention, with sizes that 2 divides."""
    cfg = CONFIGS[kind]
    mixer = cfg.stacks[0].layers[0].mixer
    return replace(cfg, vocab_size=96, stacks=(Stack(2, tuple(Layer(mixer, f) for f in ffns)),))


MOE = MoE(8, 3, 28, score="sigmoid", select_bias=True, shared=MLP(20))
MODELS = {
    "dense": single("dense", MLP(80, bias=True)),
    "moe": single("moe", MoE(8, 2, 28, bias=True, router_bias=True)),
    "mla": single("mla_moe", MLP(80)),
    "mla_moe": single("mla_moe", MOE),
}
MESHES = [
    ("dense", "data=8"), ("dense", "fsdp=8"), ("dense", "tensor=2"),
    ("moe", "expert=8"), ("moe", "data=2,fsdp=2,tensor=2"), ("moe", "fsdp=2,expert=2,tensor=2"),
    ("mla", "data=8"), ("mla", "fsdp=4,tensor=2"),
    ("mla_moe", "fsdp=4"), ("mla_moe", "data=2,expert=4"), ("mla_moe", "fsdp=2,expert=2,tensor=2"),
]  # fmt: skip
"""docs/meshes.md has this as a table."""

quickly = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True
    },
)  # fmt: skip
"""Compiles in half of the time: what is tested here is partitioning, not the code of one device."""


def mesh_of(spec: str) -> jax.sharding.Mesh:
    sizes = sharding.mesh_sizes(spec).values()
    return zoo.make_mesh(spec, jax.devices()[: int(np.prod(list(sizes)))])


@functools.cache
def made(kind: str):
    """A model, its parameters on the host, and a batch of documents with padding behind one."""
    model = zoo.Decoder(MODELS[kind])
    tokens = np.random.default_rng(0).integers(0, 96, (8, 17)).astype(np.int32)
    ids = np.repeat([[1] * 9 + [2] * 7], 8, axis=0).astype(np.int32)
    ids[3, 11:] = 0
    batch = {
        "tokens": tokens[:, :-1], "targets": np.where(ids > 0, tokens[:, 1:], -1),
        "segment_ids": ids, "positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
    }  # fmt: skip
    return model, jax.tree.map(np.asarray, random_params(model)), batch


def everything(model, placed=None):
    """One program: losses of ten steps, the norms of their gradients, and cached logits.

    Of a batch's rows the first six tokens are read one at a time, f32[B, 6, V].
    """
    optimizer = optax.adam(2e-3)
    step = make_step(model, optimizer, Balance()).__wrapped__

    def advance(state, batch):
        state, metrics = step(state, batch)
        if placed is not None:
            state = state.replace(params=jax.lax.with_sharding_constraint(state.params, placed))
        return state, (metrics["loss"], metrics["grad_norm"])

    def read(params, cache, token):
        out = model.apply(params, token[:, None], cache=cache)
        return out.cache, out.logits[:, 0]

    @quickly
    def run(params, batch):
        first = jnp.int32(0), params, optimizer.init(params["params"]), jax.random.key(0)
        again = lambda state, _: advance(state, batch)  # noqa: E731
        _, (losses, norms) = jax.lax.scan(again, TrainState(*first), length=10)
        cache = caches.init(model.cfg, 8, 7, jnp.float32)
        tokens = batch["tokens"][:, :6].T
        _, logits = jax.lax.scan(functools.partial(read, params), cache, tokens)
        return losses, norms, logits

    return run


@functools.cache
def alone(kind: str):
    model, params, batch = made(kind)
    return everything(model)(params, batch)


@pytest.mark.parametrize(("kind", "spec"), MESHES)
def test_a_mesh_equals_one_device(kind, spec):
    """The forward and backward pass, ten steps of training, and decoding with a cache."""
    model, params, batch = made(kind)
    mesh = mesh_of(spec)
    placed = sharding.shardings(model.cfg, mesh)
    params = jax.device_put(params, placed)
    rows = jax.device_put(batch, sharding.batch_sharding(mesh, None, 8))
    with sharding.use(mesh):
        losses, norms, logits = everything(model, placed)(params, rows)
    wanted_losses, wanted_norms, wanted_logits = alone(kind)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    np.testing.assert_allclose(norms[0], wanted_norms[0], rtol=1e-5)
    np.testing.assert_allclose(logits, wanted_logits, atol=1e-5 * np.abs(wanted_logits).max())


def test_generate_on_a_mesh_equals_one_device():
    """Three prompts, which the mesh does not divide, of three lengths."""
    model, params, batch = made("moe")
    prompts = [row[:n].tolist() for row, n in zip(batch["tokens"], (5, 9, 2), strict=False)]
    want = zoo.generate(model, params, prompts, 6)
    mesh = zoo.make_mesh("fsdp=2,expert=2,tensor=2")
    placed = jax.device_put(params, sharding.shardings(model.cfg, mesh))
    with sharding.use(mesh):
        assert zoo.generate(model, placed, prompts, 6) == want


def test_experts_within_stages_equal_one_device():
    """Where JAX can lay out activations in a stage, `fsdp` may cut the experts too."""
    cfg = single("moe", MoE(8, 2, 28))
    model, tokens = zoo.Decoder(cfg, microbatches=2), made("moe")[2]["tokens"]
    params = random_params(model)
    mesh = zoo.make_mesh(f"stage=2,expert=2,{'fsdp' if stacks.LAYS_OUT else 'data'}=2")

    @jax.value_and_grad
    def loss(params):
        return model.apply(params, tokens).logits.var()

    want, slope = quickly(loss)(params)
    with sharding.use(mesh):
        got, found = quickly(loss)(jax.device_put(params, sharding.shardings(cfg, mesh)))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (found, slope)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
