"""The gated delta rule in chunks and its convolution, against the rule one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.delta import causal_convolution, delta_rule_chunked, delta_rule_step, unit

LENGTH = 150  # two chunks and a part, the part no multiple of a block


def close(found, wanted, bound=1e-5):
    """Equal within `bound` of the scale of `wanted`."""
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound * float(np.abs(wanted).max()))


def one_by_one(q, k, v, decay, beta, state, starts):
    """`delta_rule_step` for each token."""

    def step(state, token):
        *token, start = token
        out, state = delta_rule_step(*token, jnp.where(start[:, None, None, None, None], 0, state))
        return state, out

    tokens = (x.swapaxes(0, 1) for x in (q, k, v, decay, beta, starts))
    state, out = jax.lax.scan(step, state, tuple(tokens))
    return out.swapaxes(0, 1), state


@pytest.fixture(scope="module", params=[1, 7], ids=["per_head", "per_channel"])
def case(request):
    """Arguments of `delta_rule_chunked`, with starts; a chunk's decay, inverted, overflows."""
    rng = np.random.default_rng(request.param)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    q, k = normal(2, LENGTH, 2, 7), unit(normal(2, LENGTH, 2, 7))
    decay = -jnp.exp(1.6 * normal(2, LENGTH, 2, 3, request.param) - 1)
    assert decay[:, :64].sum(1).min() < -88
    beta = jax.nn.sigmoid(normal(2, LENGTH, 2, 3))
    starts = (
        jnp.zeros((2, LENGTH), bool).at[0, 90].set(True).at[1, jnp.array([3, 64, 149])].set(True)
    )
    return q, k, normal(2, LENGTH, 2, 3, 5), decay, beta, normal(2, 2, 3, 7, 5), starts


def test_chunks_equal_steps(case):
    found, wanted = jax.jit(delta_rule_chunked)(*case), jax.jit(one_by_one)(*case)
    close(found[0], wanted[0])
    close(found[1], wanted[1])


def test_gradients_in_chunks_equal_those_of_steps(case):
    *args, starts = case

    def loss(rule):
        def scalar(args):
            out, state = rule(*args, starts)
            return jnp.sin(out).sum() + jnp.sin(3 * state).sum()

        return jax.jit(jax.grad(scalar))(args)

    for found, wanted in zip(loss(delta_rule_chunked), loss(one_by_one), strict=True):
        close(found, wanted, 1e-4)


def test_a_step_by_hand():
    """One head of one key channel: S = 2 * 0.5 + 3 * 0.25 * (7 - 3 * 1) = 4, read with 10."""
    one = lambda x, *shape: jnp.full(shape, x, jnp.float32)  # noqa: E731
    decay = one(np.log(0.5), 1, 1, 1, 1)
    args = one(10, 1, 1, 1), one(3, 1, 1, 1), one(7, 1, 1, 1, 1), decay, one(0.25, 1, 1, 1)
    out, state = delta_rule_step(*args, one(2, 1, 1, 1, 1, 1))
    np.testing.assert_allclose(state.item(), 4, rtol=1e-6)
    np.testing.assert_allclose(out.item(), 40, rtol=1e-6)


def test_convolution_by_hand():
    kernel = jnp.array([[100.0], [10.0], [1.0]])
    x = jnp.array([[[1.0], [2.0], [3.0], [4.0], [9.0]]])
    past = jnp.array([[[7.0], [8.0]]])
    y, newest = causal_convolution(x, kernel, past)
    assert y[0, :, 0].tolist() == [781, 812, 123, 234, 349]
    assert newest[0, :, 0].tolist() == [4, 9]


def test_convolution_stays_in_its_segment_and_forgets_padding():
    kernel = jnp.array([[100.0], [10.0], [1.0]])
    x = jnp.array([[[1.0], [2.0], [3.0], [4.0], [9.0]]] * 3)
    ids = jnp.array([[5, 5, 6, 6, 0], [5, 5, 5, 6, 0], [0, 0, 0, 0, 0]])
    y, newest = causal_convolution(x, kernel, jnp.full((3, 2, 1), 8.0), ids)
    assert y[:2, :4, 0].tolist() == [[881, 812, 3, 34], [881, 812, 123, 4]]
    assert newest[..., 0].tolist() == [[3, 4], [0, 4], [8, 8]]
