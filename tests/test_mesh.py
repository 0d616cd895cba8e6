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
from zoo import sharding
from zoo.config import MLP, Layer, MoE, Stack
from zoo.training.settings import Balance
from zoo.training.step import create_state, make_step, state_shardings


def single(kind: str, *ffns) -> zoo.Config:
    """Two layers of a kind's attention, with sizes that 2 divides."""
    cfg = CONFIGS[kind]
    mixer = cfg.stacks[0].layers[0].mixer
    return replace(cfg, vocab_size=96, stacks=(Stack(2, tuple(Layer(mixer, f) for f in ffns)),))


MOE = MoE(8, 3, 28, score="sigmoid", select_bias=True, shared=MLP(20))
MODELS = {
    "dense": single("dense", MLP(80, bias=True)),
    "moe": single("moe", MoE(8, 2, 28, bias=True, router_bias=True)),
    "mla_moe": single("mla_moe", MOE),
}
MESHES = [
    ("dense", "fsdp=8"), ("dense", "tensor=2"),
    ("moe", "expert=8"), ("moe", "data=2,fsdp=2,tensor=2"),
    ("mla_moe", "data=8"), ("mla_moe", "fsdp=2,expert=2,tensor=2"),
]  # fmt: skip


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


def trained(model, params, batch, mesh=None):
    """Losses of ten steps, and the norm of the first gradient."""
    optimizer = optax.adam(2e-3)
    placed = None if mesh is None else state_shardings(model, optimizer, mesh)
    step = make_step(model, optimizer, Balance(), placed=placed)
    state = create_state(model, optimizer, 0, params, placed)
    seen = []
    for _ in range(10):
        state, metrics = step(state, batch)
        seen.append(metrics)
    return np.array([m["loss"] for m in seen]), float(seen[0]["grad_norm"])


def decoded(model, params, tokens):
    """Logits of one token at a time against a cache, f32[B, 6, V]."""

    @jax.jit
    def run(params, tokens):
        def one(cache, token):
            out = model.apply(params, token[:, None], cache=cache)
            return out.cache, out.logits[:, 0]

        cache = caches.init(model.cfg, 8, 7, jnp.float32)
        return jax.lax.scan(one, cache, tokens[:, :6].T)[1].swapaxes(0, 1)

    return np.asarray(run(params, tokens))


@functools.cache
def alone(kind: str):
    model, params, batch = made(kind)
    return trained(model, jax.device_put(params), batch), decoded(model, params, batch["tokens"])


@pytest.mark.parametrize(("kind", "spec"), MESHES)
def test_a_mesh_equals_one_device(kind, spec):
    model, params, batch = made(kind)
    (losses, norm), logits = alone(kind)
    mesh = mesh_of(spec)
    placed = jax.device_put(params, sharding.shardings(model.cfg, mesh))
    rows = jax.device_put(batch, sharding.batch_sharding(mesh, None, 8))
    with sharding.use(mesh):
        got = decoded(model, placed, rows["tokens"])
        steps, first = trained(model, params, rows, mesh)
    np.testing.assert_allclose(got, logits, atol=1e-5 * np.abs(logits).max())
    np.testing.assert_allclose(steps, losses, rtol=1e-5)
    np.testing.assert_allclose(first, norm, rtol=1e-5)


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
    cfg = single("moe", MoE(8, 2, 28))
    model, tokens = zoo.Decoder(cfg, microbatches=2), made("moe")[2]["tokens"]
    params = random_params(model)
    mesh = zoo.make_mesh("stage=2,expert=2,data=2")

    @jax.value_and_grad
    def loss(params):
        return model.apply(params, tokens).logits.var()

    want, slope = jax.jit(loss)(params)
    with sharding.use(mesh):
        got, found = jax.jit(loss)(jax.device_put(params, sharding.shardings(cfg, mesh)))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (found, slope)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
