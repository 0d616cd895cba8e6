import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import zoo.attention

attend = jax.jit(zoo.attention.attend, static_argnames=("scale", "window"))


def reference(q, k, v, scale, offset=None, segment_ids=None, window=None):
    """transformers' eager attention, written with repeated heads and a full mask, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (B, T, N, _), S = q.shape, k.shape[1]
    k, v = (np.repeat(x, N // x.shape[2], axis=2) for x in (k, v))
    offset = np.zeros(B, int) if offset is None else np.asarray(offset)
    distance = offset[:, None, None] + np.arange(T)[:, None] - np.arange(S)
    mask = (distance >= 0) & (distance < (window or S + T))
    if segment_ids is not None:
        ids = np.asarray(segment_ids)
        mask &= ids[:, :, None] == ids[:, None, :]
    scores = np.einsum("btnh,bsnh->bnts", q, k) * scale
    scores = np.where(mask[:, None], scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnv->btnv", probs / probs.sum(-1, keepdims=True), v)


def plain(q, k, v, segment_ids, window):
    """The same in jax.numpy, for gradients."""
    (_, T, N, H), K = q.shape, k.shape[2]
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    distance = jnp.arange(T)[:, None] - jnp.arange(T)
    mask = ((distance >= 0) & (distance < (window or T)))[None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") * H**-0.5
    probs = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
    return jnp.einsum("bnts,bsnv->btnv", probs, v, precision="highest")


def make(B, T, S, N, K, H, Hv, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, Hv))
    pairs = zip(keys, shapes, strict=True)
    return [jax.random.normal(key, shape, dtype) for key, shape in pairs]


def segments(B, T):
    """Documents of uneven lengths that cross block borders, then padding."""
    rng = np.random.default_rng(1)
    ids = np.cumsum(rng.random((B, T)) < 0.03, axis=1) + 1
    ids[:, T - T // 10 :] = 0
    return jnp.asarray(ids, jnp.int32)


def close(got, want, bound):
    want = np.asarray(want)
    assert np.abs(np.asarray(got) - want).max() <= bound * np.abs(want).max()


# 1 block, several, a ragged last one, and the largest count with blocks above the smallest.
@pytest.mark.parametrize("T", [1, 5, 64, 150, 600])
@pytest.mark.parametrize("heads", [(4, 4, 16, 16), (4, 2, 16, 8), (3, 1, 24, 16)])
@pytest.mark.parametrize("window", [None, 1, 40])
def test_matches_reference_within_a_sequence(T, heads, window):
    q, k, v = make(2, T, T, *heads)
    ids = segments(2, T)
    for segment_ids in (None, ids):
        got = attend(q, k, v, scale=0.3, segment_ids=segment_ids, window=window)
        close(got, reference(q, k, v, 0.3, segment_ids=segment_ids, window=window), 1e-6)


@pytest.mark.parametrize("T", [1, 3, 70])
@pytest.mark.parametrize("heads", [(4, 4, 16, 16), (4, 2, 16, 8), (3, 1, 24, 16)])
@pytest.mark.parametrize("window", [None, 20])
def test_matches_reference_against_a_cache(T, heads, window):
    q, k, v = make(3, T, 90, *heads)
    offset = jnp.array([0, 7, 20])
    got = attend(q, k, v, scale=0.3, offset=offset, window=window)
    close(got, reference(q, k, v, 0.3, offset, window=window), 1e-6)


@pytest.mark.parametrize("heads", [(4, 4, 16, 16), (4, 2, 16, 8)])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_match_autodiff(heads, window, packed):
    T = 150
    q, k, v = make(2, T, T, *heads)
    ids = segments(2, T) if packed else None
    weight = jax.random.normal(jax.random.key(9), (2, T, heads[0], heads[3]))

    def ours(q, k, v):
        out = attend(q, k, v, scale=heads[2] ** -0.5, segment_ids=ids, window=window)
        return (out * weight).sum()

    def theirs(q, k, v):
        return (plain(q, k, v, ids, window) * weight).sum()

    for got, want in zip(
        jax.jit(jax.grad(ours, (0, 1, 2)))(q, k, v),
        jax.jit(jax.grad(theirs, (0, 1, 2)))(q, k, v),
        strict=True,
    ):
        close(got, want, 1e-5)


def test_no_gradient_flows_from_the_future_or_another_segment():
    q, k, v = make(1, 130, 130, 2, 1, 8, 8)
    ids = jnp.repeat(jnp.array([[1, 2]]), 65, axis=1)

    def query(t):
        return lambda k, v: attend(q, k, v, scale=1.0, segment_ids=ids)[0, t].sum()

    for grad in jax.jit(jax.grad(query(100), (0, 1)))(k, v):
        reached = np.abs(np.asarray(grad)).sum((0, 2, 3)) > 0
        assert reached[65:101].all()
        assert not reached[:65].any()
        assert not reached[101:].any()


def test_packed_equals_separate():
    q, k, v = make(1, 100, 100, 4, 2, 16, 16)
    ids = jnp.repeat(jnp.array([[1, 2]]), jnp.array([37, 63]), axis=1)
    packed = attend(q, k, v, scale=0.25, segment_ids=ids)
    apart = [attend(*(x[:, part] for x in (q, k, v)), scale=0.25) for part in (
        slice(0, 37), slice(37, 100))]  # fmt: skip
    close(packed, jnp.concatenate(apart, axis=1), 1e-6)


def test_cached_equals_uncached():
    q, k, v = make(2, 40, 40, 4, 2, 16, 16)
    whole = attend(q, k, v, scale=0.25)
    for t in (0, 17, 39):
        step = attend(q[:, t : t + 1], k, v, scale=0.25, offset=jnp.array([t, t]))
        close(step[:, 0], whole[:, t], 1e-6)


def test_large_scores_neither_overflow_nor_vanish():
    q, k, v = make(1, 70, 70, 2, 2, 8, 8)
    out = attend(1e4 * q, k, v, scale=1.0)
    close(out, reference(1e4 * q, k, v, 1.0), 1e-4)


def test_bfloat16_keeps_softmax_in_float32():
    q, k, v = make(2, 100, 100, 4, 2, 32, 32, jnp.bfloat16)
    out = attend(q, k, v, scale=32**-0.5)
    assert out.dtype == jnp.bfloat16
    close(out.astype(jnp.float32), reference(q, k, v, 32**-0.5), 1e-2)
    loss = lambda *a: attend(*a, scale=0.1).astype(jnp.float32).sum()  # noqa: E731
    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
    assert all(g.dtype == jnp.bfloat16 for g in grads)


def test_under_vmap_scan_and_remat():
    q, k, v = make(2, 70, 70, 4, 2, 8, 8)

    def layer(x, _):
        return jax.checkpoint(lambda x: attend(x, k, v, scale=0.3))(x), None

    def run(q):
        return jax.lax.scan(layer, q, length=2)[0].sum()

    def direct(q):
        return attend(attend(q, k, v, scale=0.3), k, v, scale=0.3).sum()

    close(jax.jit(jax.grad(run))(q), jax.jit(jax.grad(direct))(q), 1e-6)
    rows = jax.vmap(lambda *a: attend(*(x[None] for x in a), scale=0.3)[0])(q, k, v)
    close(rows, attend(q, k, v, scale=0.3), 1e-6)


def test_less_than_two_thirds_of_the_square_is_computed():
    T, N, H = 1024, 2, 32
    q, k, v = make(1, T, T, N, N, H, H)
    cost = jax.jit(lambda *a: attend(*a, scale=0.1)).lower(q, k, v).cost_analysis()
    square = 2 * 2 * N * T * T * H
    assert 0.5 < cost["flops"] / square < 0.75  # products; softmax adds the rest
    cost = jax.jit(lambda *a: attend(*a, scale=0.1, window=64)).lower(q, k, v).cost_analysis()
    assert cost["flops"] / square < 0.35


def test_memory_of_long_sequences_is_a_block_of_scores():
    T, N, H = 4096, 4, 32
    shapes = [jax.ShapeDtypeStruct((1, T, N, H), jnp.float32)] * 3
    grad = jax.jit(jax.grad(lambda *a: attend(*a, scale=0.1).sum(), (0, 1, 2)))
    scores = 4 * N * T * T
    assert grad.lower(*shapes).compile().memory_analysis().temp_size_in_bytes < scores


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for(platform):
    shapes = [jax.ShapeDtypeStruct((1, 130, n, 16), jnp.bfloat16) for n in (4, 2, 2)]
    grad = jax.jit(jax.grad(lambda *a: attend(*a, scale=0.1).astype(jnp.float32).sum(), (0, 1, 2)))
    exported = export.export(grad, platforms=[platform])(*shapes)
    assert re.search(r"dot_general.*bf16.*f32", exported.mlir_module())


def test_refuses_what_has_no_meaning():
    q, k, v = make(1, 4, 4, 2, 2, 8, 8)
    with pytest.raises(ValueError, match="window=0"):
        attend(q, k, v, scale=1.0, window=0)
    with pytest.raises(ValueError, match="segment_ids need offset=None"):
        attend(q, k, v, scale=1.0, offset=jnp.zeros(1, int), segment_ids=jnp.ones((1, 4), int))
    with pytest.raises(AssertionError):
        attend(q, k[:, :3], v, scale=1.0)
