"""Rings against no cache at all: whatever is read at a time, they hold what is in sight."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.examples import DIM, VOCAB, random_params
from zoo import cache, window
from zoo.config import MLP, Attention, Config, Layer, Rope, Stack, Temperature

WINDOW = Attention(4, 2, 16, Rope(16), window=5, sinks=True)
CHUNK = Attention(4, 1, 12, Rope(12), chunk=7, softcap=20.0, temperature=Temperature(0.1, 4.0))
FULL = Attention(4, 2, 16, Rope(16))
CFG = Config(VOCAB, DIM, (Stack(2, tuple(Layer(a, MLP(80)) for a in (WINDOW, FULL, CHUNK))),))


@pytest.fixture(scope="module")
def made():
    model = zoo.Decoder(CFG)
    tokens = jax.random.randint(jax.random.key(7), (2, 24), 0, VOCAB)
    return model, random_params(model), tokens


@functools.cache
def run(model):
    return jax.jit(model.apply)


@pytest.fixture(scope="module")
def want(made):
    model, params, tokens = made
    return run(model)(params, tokens).logits


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))


def new(made, length=40, **options):
    model, _, _ = made
    return cache.init(model.cfg, 2, length, jnp.float32, room=40, **options)


def test_pieces_shorter_as_long_and_longer_than_the_ring(made, want):
    model, params, tokens = made
    state, got = new(made), []
    assert state.stacks["stack_0"]["layer_0"].k.shape == (2, 2, 2, 5, 16)
    assert state.stacks["stack_0"]["layer_2"].k.shape == (2, 2, 1, 7, 12)
    cuts = [0, 9, 10, 15, 22, 23, 24]
    for start, stop in itertools.pairwise(cuts):
        out = run(model)(params, tokens[:, start:stop], cache=state)
        state, _ = out.cache, got.append(out.logits)
    close(jnp.concatenate(got, axis=1), want)


def test_padding_stays_out_when_a_ring_is_filled_and_later(made, want):
    """Rows of 24 and 11 tokens, filled whole; then of 0 and 4 more, then a token each."""
    model, params, tokens = made
    ids = (jnp.arange(24) < jnp.array([[24], [11]])).astype(jnp.int32)
    state = run(model)(params, tokens, segment_ids=ids, cache=new(made, 24)).cache
    state = cache.grow(state, 16)
    piece = jnp.broadcast_to(tokens[1:, 11:20], (2, 9))
    ids = (jnp.arange(9) < jnp.array([[0], [4]])).astype(jnp.int32)
    state = run(model)(params, piece, segment_ids=ids, cache=state).cache
    assert state.lengths.tolist() == [24, 15]
    out = run(model)(params, tokens[:, 15:16], cache=state)
    close(out.logits[1, 0], want[1, 15])
    longer = jnp.concatenate((tokens[:1], tokens[:1, 15:16]), axis=1)
    close(out.logits[0, 0], run(model)(params, longer).logits[0, -1])


def test_spare_slots_let_tokens_be_taken_back(made, want):
    model, params, tokens = made
    state = run(model)(params, tokens[:, :12], cache=new(made, spare=3)).cache
    for wrong in (3, 1, 2):
        state = run(model)(params, (tokens[:, :wrong] + 1) % VOCAB, cache=state).cache
        state = state._replace(lengths=state.lengths - wrong)
    out = run(model)(params, tokens[:, 12:15], cache=state)
    close(out.logits, want[:, 12:15])


@pytest.mark.parametrize(("dtype", "bound"), [("float8_e4m3fn", 1 / 16), ("int8", 1 / 127)])
def test_a_cache_of_a_byte_a_value_costs_little_accuracy(made, want, dtype, bound):
    """Three bits behind the point round keys and values by at most 1/16, int8 by half of 1/127 of
    the largest; logits move by less than that in the root mean square."""
    model, params, tokens = made
    state = cache.init(CFG, 2, 40, jnp.dtype(dtype), room=40)
    got = []
    for start, stop in itertools.pairwise((0, 11, 22, 23, 24)):
        out = run(model)(params, tokens[:, start:stop], cache=state)
        state, _ = out.cache, got.append(out.logits)
    error = jnp.linalg.norm(jnp.concatenate(got, axis=1) - want) / jnp.linalg.norm(want)
    assert 1e-4 < error < bound


def test_positions_are_those_of_the_newest_tokens():
    got = window.positions(4, jnp.array([0, 2, 4, 7]))
    assert got.tolist() == [[-4, -3, -2, -1], [0, 1, -2, -1], [0, 1, 2, 3], [4, 5, 6, 3]]


def test_a_row_costs_what_is_in_sight():
    """Per repeat, keys and values of 5 slots of 2 x 16, of 7 of 12, and of all of 2 x 16."""
    rings = 5 * 2 * 16 + 7 * 12
    assert cache.row_bytes(CFG, 1000, jnp.bfloat16) == 2 * 2 * 2 * (rings + 1000 * 2 * 16)
    gemma = zoo.config("gemma-3-1b")  # 22 of 26 layers see 512 tokens, all have a head of 256
    slots = 22 * 512 + 4 * 32_768
    assert cache.row_bytes(gemma, 32_768, jnp.bfloat16) == slots * 2 * 256 * 2
