"""Ring attention equals attention on one device, and its memory is that of tiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import zoo
import zoo.attention
from tests.examples import CONFIGS, random_params
from zoo import ring, sharding, zigzag

CASES = {
    "plain": {},
    "chunks": dict(chunk=13, packed=True),
    "all": dict(window=23, packed=True, sinks=True, softcap=5.0),
}


def inputs(B, T, N, K, H, Hv, packed=False, sinks=False):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    ids = None
    if packed:
        ids = np.cumsum(rng.random((B, T)) < 0.06, axis=1) + 1
        ids[:, T - 5 :] = 0
        ids = jnp.asarray(ids, jnp.int32)
    arrays = draw(B, T, N, H), draw(B, T, K, H), draw(B, T, K, Hv), draw(N) if sinks else None
    return arrays, ids, draw(B, T, N, Hv)


def ringed(q, k, v, segment_ids=None, **how):
    """`ring.attend` for arrays in the order of the row."""
    slots = zigzag.slots(q.shape[1])
    q, k, v, segment_ids = zigzag.arrange((q, k, v, segment_ids), slots)
    out = ring.attend(q, k, v, slots=slots, segment_ids=segment_ids, **how)
    return zigzag.restore(out, slots)


def slopes(function, arrays, ids, weight, **how):
    def loss(q, k, v, sinks):
        out = function(q, k, v, segment_ids=ids, sinks=sinks, scale=0.3, **how)
        return (out * weight).sum(), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)


def close(got, want, bound):
    want = np.asarray(want)
    assert np.abs(np.asarray(got) - want).max() <= bound * np.abs(want).max()


@pytest.mark.parametrize(
    ("case", "mesh"),
    [("plain", "context=2,data=4"), ("chunks", "context=4,tensor=2"), ("all", "context=8")],
)
def test_equals_attend(monkeypatch, case, mesh):
    monkeypatch.setattr(ring, "TILE", 4)
    how = dict(CASES[case])
    made = inputs(4, 80, 4, 2, 8, 6, how.pop("packed", False), how.pop("sinks", False))
    want, want_out = slopes(zoo.attention.attend, *made, **how)
    with jax.set_mesh(zoo.make_mesh(mesh)):
        got, got_out = slopes(ringed, *made, **how)
    close(got_out, want_out, 1e-5)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(a, b, 1e-5)


def test_zigzag_balances_and_skips():
    """Causal: every device as many tiles, half of the square. A window: few; a segment: its own."""
    with jax.set_mesh(zoo.make_mesh("context=8")):
        slots, one = zigzag.slots(512), jnp.zeros((1, 512), jnp.int32)
        count = lambda ids, window: np.asarray(  # noqa: E731
            ring._meeting(slots, ids, ring.Limits(window, None, 16))
        )
        causal = count(one, None).reshape(8, -1).sum(1)
        assert (causal == causal[0]).all()
        assert causal.sum() == 32 * 33 // 2
        assert count(one, 16).sum() == 32 + 31
        halves = jnp.asarray(np.arange(512)[None] // 256, jnp.int32)[:, slots]
        assert count(halves, None).sum() == 2 * (16 * 17 // 2)


def test_arrange_and_restore_are_the_order_of_slots():
    with jax.set_mesh(zoo.make_mesh("context=4,data=2")):
        slots, row = zigzag.slots(16), jnp.arange(16)[None]
        np.testing.assert_array_equal(slots, [0, 1, 14, 15, 2, 3, 12, 13, 4, 5, 10, 11, 6, 7, 8, 9])
        np.testing.assert_array_equal(zigzag.arrange(row, slots)[0], slots)
        np.testing.assert_array_equal(zigzag.restore(slots[None], slots), row)


@pytest.mark.parametrize(("layers", "share"), [(1, 8), (2, 6)])
def test_a_window_of_64k_tokens_never_forms_its_scores(layers, share):
    """Forward and backward of a scan over layers, on eight devices; the scores of a head would be
    17 GB in all. A second layer adds what it keeps for its gradient."""
    T, N, K, H = 65_536, 4, 2, 64
    with jax.set_mesh(mesh := zoo.make_mesh("context=8")):
        where = NamedSharding(mesh, PartitionSpec(None, "context"))
        shapes = [
            jax.ShapeDtypeStruct((1, T, heads, H), jnp.bfloat16, sharding=where)
            for heads in (N, K, K)
        ]
        slots = zigzag.slots(T)
        attend = functools.partial(ring.attend, slots=slots, scale=0.1)

        def loss(q, k, v):
            out, _ = jax.lax.scan(lambda q, _: (attend(q, k, v), None), q, length=layers)
            return out.astype(jnp.float32).sum()

        grad = jax.jit(jax.grad(loss, (0, 1, 2)))
        compiled = grad.lower(*shapes).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    kept = 4 * T // 8 * N * H  # an array of queries or outputs in float32, on one device
    assert temporary < 16 * kept + 16 * 4 * N * ring.TILE**2
    assert temporary < 4 * N * (T // 8) ** 2 / share  # of what a device's own square takes
    assert "all-gather" not in compiled.as_text()


MIXERS = {
    kind: CONFIGS[kind].stacks[0].layers[0].mixer for kind in ("moe", "mla", "delta", "indexed")
} | {"follower": CONFIGS["indexed"].stacks[1].layers[0].mixer}


@pytest.mark.parametrize("kinds", [("moe", "mla"), ("delta",), ("indexed", "follower")])
def test_decoder_on_shared_rows_equals_one_device(kinds):
    """A window, latents and multi-token prediction; a recurrence; five chosen keys per query, which
    two layers share. Packed rows, and gradients."""
    layers = tuple(zoo.Layer(MIXERS[kind], zoo.MLP(24)) for kind in kinds)
    cfg = zoo.Config(97, 32, (zoo.Stack(1, layers),), mtp=layers[: len(layers) - 1])
    model, params = zoo.Decoder(cfg), random_params(zoo.Decoder(cfg))
    tokens = jax.random.randint(jax.random.key(1), (2, 32), 0, cfg.vocab_size)
    ids = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], [8, 8, 11, 5], axis=1))

    def loss(params):
        out = model.apply(params, tokens, ids, method="hidden")
        hidden = [out.hidden]
        for depth in range(len(cfg.mtp)):
            hidden.append(
                model.apply(params, depth, hidden[-1], tokens, ids, method="draft").hidden
            )
        weights = jax.random.normal(jax.random.key(2), tokens.shape)[..., None]
        return sum((jnp.tanh(h) * weights).sum() for h in hidden), out.hidden

    want, want_hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
    with sharding.use(zoo.make_mesh("context=4,data=2")):
        got, got_hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
    close(got_hidden, want_hidden, 1e-5)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(float(np.abs(b).max()), 1e-2))


def test_refuses_a_length_that_devices_cannot_share():
    model = zoo.Decoder(CONFIGS["dense"])
    with jax.set_mesh(zoo.make_mesh("context=4,data=2")):
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        with pytest.raises(ValueError, match=r"20 tokens does not divide by 8.*pad it to 24"):
            jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, 20), jnp.int32))
