"""Grouped-query attention against a hand computation, where it uses another layer's keys."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from zoo.config import Attention, Rope
from zoo.gqa import GroupedQueryAttention
from zoo.rope import rotate, tables

OWN = Attention(4, 2, 6, Rope(6))
SHARING = dataclasses.replace(OWN, share_kv=1, window=3, scale=0.7)


def test_a_sharing_layer_attends_to_the_keys_and_values_it_is_given(rng):
    x, y = (jnp.asarray(rng.normal(size=(1, 8, 10)), jnp.float32) for _ in range(2))
    turn = tables(OWN.rope, jnp.arange(8)[None], jnp.float32)
    owner, sharer = (GroupedQueryAttention(spec, 10) for spec in (OWN, SHARING))
    first = owner.init(jax.random.key(0), x, turn)
    _, kept = owner.apply(first, x, turn)
    second = sharer.init(jax.random.key(1), y, turn, cache=kept)
    assert set(second["params"]) == {"q", "o"}
    found, again = sharer.apply(second, y, turn, cache=kept)
    assert again is kept
    w = {f"{name}{i}": np.asarray(p["params"][name]["w"].value)
         for i, p in enumerate((first, second)) for name in p["params"]}  # fmt: skip
    q = np.asarray(rotate(jnp.einsum("BTD,DNH->BTNH", y, w["q1"]), *turn))[0]
    k = np.asarray(rotate(jnp.einsum("BTD,DKH->BTKH", x, w["k0"]), *turn))[0].repeat(2, axis=1)
    v = np.einsum("TD,DKH->TKH", np.asarray(x)[0], w["v0"]).repeat(2, axis=1)
    behind = np.arange(8)[:, None] - np.arange(8)
    scores = 0.7 * np.einsum("TNH,SNH->NTS", q, k)
    weights = np.exp(np.where((behind >= 0) & (behind < 3), scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    wanted = np.einsum("NTS,SNH,NHD->TD", weights, v, w["o1"])
    np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-5)
