"""An engine's memory: bytes are what the arithmetic says, and rows that begin alike share pages."""

import jax
import numpy as np
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from tests.inference.test_engine import engine, ids
from zoo import cache
from zoo.inference.engine import Request

SYSTEM = [11 * i % 97 for i in range(64)]
MODEL = zoo.Decoder(CONFIGS["dense"])
SIZE = cache.PAGE * cache.bytes_per_token(MODEL.cfg, np.float32)


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


def begun(served, *requests):
    """Their tickets, once all have pages or none is left to be had."""
    tickets = [served.submit(request) for request in requests]
    for _ in range(6):
        served.step()
    return tickets


def texts(served, tickets):
    while served.step():
        pass
    return [ids(ticket.drain()) for ticket in tickets]


def test_texts_hold_what_they_may_need_and_the_pool_is_what_was_said(params):
    served = engine(MODEL, params, cache_bytes=7 * SIZE + 5)
    pool = sum(leaf.nbytes for leaf in jax.tree.leaves(served._batch._cache.stacks))
    assert pool == (1 + 7) * SIZE
    tickets = begun(served, Request(SYSTEM[:40], 24), Request(SYSTEM[:40], 25))
    assert served.stats.held_bytes == (2 + 3) * SIZE
    texts(served, tickets)
    assert served.stats.held_bytes == 0


def test_a_shared_beginning_is_held_once(params):
    served = engine(MODEL, params, prefix_bytes=2 * SIZE)
    requests = [Request([*SYSTEM, i], 20) for i in range(3)]
    tickets = begun(served, *requests)
    assert served.stats.held_bytes == (2 + 3) * SIZE
    assert served.stats.prefix_bytes == 2 * SIZE
    found = texts(served, tickets)
    assert served.stats.held_bytes == served.stats.prefix_bytes == 2 * SIZE
    assert found == zoo.generate(MODEL, params, [r.prompt for r in requests], 20)


def test_who_finds_no_pages_waits_and_what_was_used_longest_ago_goes(params):
    served = engine(MODEL, params, cache_bytes=4 * SIZE, prefix_bytes=2**20)
    for prompt in (SYSTEM[:33], SYSTEM[1:34]):
        texts(served, begun(served, Request(prompt, 2)))
    assert served.stats.held_bytes == served.stats.prefix_bytes == 2 * SIZE
    first, second = begun(served, Request(SYSTEM[2:38], 36), Request(SYSTEM[1:40], 20))
    assert (served.stats.held_bytes, served.stats.active) == ((3 + 1) * SIZE, 1)
    assert (len(first.drain()) > 0, second.drain()) == (True, [])
    first.cancel()
    assert texts(served, [second]) == zoo.generate(MODEL, params, [SYSTEM[1:40]], 20)
    assert second.cached_tokens == 32
    (third,) = begun(served, Request(SYSTEM[:33], 2))
    assert third.cached_tokens == 0


def test_who_finds_no_pages_is_passed_by_those_that_fit_a_few_times_and_no_more(params):
    served = engine(MODEL, params, cache_bytes=4 * SIZE)  # of three slots
    long, large = begun(served, Request(SYSTEM[:40], 56), Request(SYSTEM[:40], 1))
    small = [served.submit(Request([i], 2)) for i in range(5)]
    for _ in range(8):
        served.step()
    assert [ticket.done for ticket in small] == [True, True, True, False, False]
    assert (large.done, large.passed, long.passed) == (False, 3, 0)
    long.cancel()
    texts(served, [])
    assert large.passed == 3
    assert all(ticket.done and ticket.error is None for ticket in (large, *small))
