"""The filters against their definitions, and draws against the distribution they ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.inference.sampling import Sampling, choose, keep, likeliest

PROB = np.array([[0.4, 0.05, 0.25, 0.1, 0.2]])
LOGITS = jnp.asarray(np.log(PROB), jnp.float32)


def kept(**filters):
    found = keep(LOGITS, Sampling(temperature=1.0, **filters))
    return set(np.flatnonzero(np.isfinite(found[0])).tolist())


@pytest.mark.parametrize(
    ("filters", "want"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {0, 2}),
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.5}, {0, 2}),
        ({"top_p": 0.7}, {0, 2, 4}),
        ({"top_p": 0.01}, {0}),
        ({"min_p": 0.45}, {0, 2, 4}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 2, "top_p": 0.6}, {0}),
        ({"top_k": 3, "min_p": 0.6}, {0, 2}),
    ],
)
def test_filters_keep_what_they_should(filters, want):
    assert kept(**filters) == want


def test_the_likeliest_token_is_the_first_of_equals():
    rows = [[1, 3, 2, 3], [-np.inf] * 4, [2, -np.inf, np.inf, np.inf], [-1, -1, -1, -0.5]]
    logits = jnp.asarray(rows, jnp.float32)
    assert likeliest(logits).tolist() == jnp.argmax(logits, -1).tolist() == [1, 0, 2, 3]
    broken = likeliest(jnp.asarray([[1, np.nan, 2], [np.nan] * 3], jnp.float32))
    assert ((broken >= 0) & (broken < 3)).all()


def test_draws_follow_the_filtered_distribution():
    sampling = Sampling(temperature=2.0, top_k=3)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda key: choose(LOGITS, sampling, key)[0])(keys)
    want = np.where(np.isin(np.arange(5), [0, 2, 4]), PROB[0] ** 0.5, 0)
    got = np.bincount(drawn, minlength=5) / len(keys)
    np.testing.assert_allclose(got, want / want.sum(), atol=0.015)


def test_no_temperature_is_greedy():
    assert choose(LOGITS, Sampling(), jax.random.key(0)).tolist() == [0]
