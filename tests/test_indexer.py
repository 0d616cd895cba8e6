"""The indexer's choice, against a loop over queries, heads and keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import cache, indexer
from zoo.config import MLA, MLP, Config, Indexer, Layer, Rope, Stack

B, T, S, N, H, TOP = 2, 70, 90, 3, 5, 4  # more queries than are scored at a time


def by_hand(q, k, weights, seen):
    chosen = np.zeros(seen.shape, bool)
    for b, t in np.ndindex(B, T):
        scores = np.full(S, -np.inf)
        for s in np.flatnonzero(seen[b, t]):
            each = [max(0.0, float(q[b, t, n] @ k[b, s]) * H**-0.5) for n in range(N)]
            scores[s] = sum(weights[b, t, n] * N**-0.5 * each[n] for n in range(N))
        best = np.argsort(-scores, kind="stable")[:TOP]
        chosen[b, t, best] = seen[b, t, best]
    return chosen


def test_choose_takes_the_best_visible_keys_and_the_earlier_of_equals(rng):
    q, k, weights = (rng.normal(size=s) for s in ((B, T, N, H), (B, S, H), (B, T, N)))
    q[:, ::7] = 0.0  # every key scores 0
    offset = jnp.asarray([0, S - T])
    seen = np.asarray(indexer.visible(T, S, offset, None))
    wide = (jnp.asarray(x, jnp.float32) for x in (q, k, weights))
    got = np.asarray(jax.jit(indexer.choose, static_argnums=4)(*wide, jnp.asarray(seen), TOP))
    np.testing.assert_array_equal(got, by_hand(q, k, weights, seen))
    assert (got.sum(-1) == np.minimum(seen.sum(-1), TOP)).all()


def test_visible_keeps_to_order_offset_and_segment():
    ids = jnp.asarray([[0, 1, 1, 2]])
    assert np.asarray(indexer.visible(4, 4, None, ids))[0].astype(int).tolist() == [
        [1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1],
    ]  # fmt: skip
    got = indexer.visible(2, 5, jnp.asarray([0, 2]), None).sum(-1)
    assert got.tolist() == [[1, 2], [3, 4]]


def test_the_indexers_keys_are_cached_and_a_follower_has_none():
    """DeepSeek-V3.2: 128 values per token and layer beside the latent's 512 + 64."""
    own = Indexer(64, 128, 2048)
    mixer = MLA(128, 1536, 512, 128, 64, 128, Rope(64), indexer=own)
    follower = MLA(128, 1536, 512, 128, 64, 128, Rope(64), follows=True)
    layers = Layer(mixer, MLP(18432)), Layer(follower, MLP(18432))
    cfg = Config(129280, 7168, (Stack(1, layers),))
    assert cache.bytes_per_token(cfg, jnp.bfloat16) == 2 * (576 + 128 + 576)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(q_rank=None), "needs q_rank and rope"),
        (dict(rope=None), "needs q_rank and rope"),
        (dict(follows=True), "choose one of them"),
        (dict(indexer=Indexer(2, 6, 4)), "Indexer.dim=6 must be at least rope_dim=8"),
    ],
)
def test_what_an_indexer_needs(change, message):
    fields = dict(
        heads=4, q_rank=20, kv_rank=24, nope_dim=12, rope_dim=8, v_dim=10, rope=Rope(8),
        indexer=Indexer(2, 8, 4),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        MLA(**fields | change)


def test_a_follower_needs_an_indexer_before_it():
    sizes = dict(heads=4, q_rank=20, kv_rank=24, nope_dim=12, rope_dim=8, v_dim=10, rope=Rope(8))
    follower = Layer(MLA(**sizes, follows=True), MLP(20))
    own = Layer(MLA(**sizes, indexer=Indexer(2, 8, 4)), MLP(20))
    with pytest.raises(ValueError, match="needs an earlier layer with an indexer"):
        Config(97, 48, (Stack(2, (follower, own)),))
    with pytest.raises(ValueError, match=r"Config.mtp: MLA.follows=True needs an indexer"):
        Config(97, 48, (Stack(2, (own, follower)),), mtp=(follower,))
