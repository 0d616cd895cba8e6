"""Linear maps of one row, which take a path of their own, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers import project


@pytest.mark.parametrize("inputs", [(6,), (2, 3), (5,)], ids=["even", "two axes", "odd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_alone_equals_the_product(rng, inputs, dtype):
    x = rng.normal(size=(1, 1, *inputs)).astype(np.float32)
    w = rng.normal(size=(*inputs, 4, 2)).astype(np.float32)
    x, w = (np.asarray(jnp.asarray(t, dtype), np.float32) for t in (x, w))

    def loss(x, w):
        return jnp.square(project(x, w, jnp.dtype(dtype), len(inputs)).astype(jnp.float32)).sum()

    wanted = np.tensordot(x, w, len(inputs))
    error = {"float32": 1e-6, "bfloat16": 2e-2}[dtype]
    found = project(x, w, jnp.dtype(dtype), len(inputs))
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, rtol=error, atol=error)
    by_x, by_w = jax.grad(loss, (0, 1))(jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_allclose(
        by_w, np.multiply.outer(x[0, 0], 2 * wanted[0, 0]), rtol=4 * error, atol=4 * error
    )
    np.testing.assert_allclose(
        by_x[0, 0], np.tensordot(w, 2 * wanted[0, 0], 2), rtol=8 * error, atol=8 * error
    )


def test_a_row_among_many_is_the_row_alone(rng):
    x, w = rng.normal(size=(3, 6)), rng.normal(size=(6, 4))
    one_by_one = jax.vmap(lambda row: project(row, jnp.asarray(w), jnp.float32))(jnp.asarray(x))
    np.testing.assert_allclose(one_by_one, x @ w, rtol=1e-5, atol=1e-6)
