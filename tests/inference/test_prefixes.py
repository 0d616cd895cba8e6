"""The prefix cache: what is found was read, texts stay the same, and bytes stay bounded."""

import numpy as np
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from tests.inference.test_engine import engine, ids, is_greedy, longrope  # noqa: F401 (a fixture)
from zoo import cache
from zoo.cache import PAGE
from zoo.inference.engine import Request
from zoo.inference.pages import Pages
from zoo.inference.prefixes import Prefixes

SYSTEM = [11 * i % 97 for i in range(70)]
NEW = 6


@pytest.fixture(scope="module", params=["dense", "delta"])
def model(request):
    """Slots alone, and beside a state that goes on only from where it was kept."""
    model = zoo.Decoder(CONFIGS[request.param])
    return model, random_params(model)


def serve(served, *prompts, **options):
    """Tokens found of each prompt, and the texts, all asked for at once."""
    tickets = [served.submit(Request(prompt, NEW, **options)) for prompt in prompts]
    while served.step():
        pass
    return [t.cached_tokens for t in tickets], [ids(t.drain()) for t in tickets]


def test_a_prompt_that_begins_alike_is_read_from_there(model):
    served = engine(*model, prefix_bytes=2**24)
    prompts = [[*SYSTEM, 1, 2, 3], [*SYSTEM, 4], [*SYSTEM[:40], 5, 6], SYSTEM[1:]]
    found, texts = serve(served, *prompts)
    # The second of those that came together finds what was read for the first.
    assert found == [0, 64, 32, 0]
    assert is_greedy(*model, prompts, texts)
    again, same = serve(served, *prompts)
    assert again == [64, 64, 32, 64]
    assert same == texts
    assert (served.stats.prefix_hits, served.stats.cached_tokens) == (6, 320)
    assert serve(served, prompts[0], prompt_logprobs=True) == ([0], texts[:1])


def test_a_conversation_goes_on_from_its_last_answer():
    model = zoo.Decoder(CONFIGS["dense"])
    served = engine(model, params := random_params(model), prefix_bytes=2**24)
    _, (answer,) = serve(served, SYSTEM[:60])
    text = [*SYSTEM[:60], *answer, 7]  # 65 tokens were read: the last one made was not
    found, texts = serve(served, text)
    assert found == [64]
    assert is_greedy(model, params, [text], texts)


def test_texts_turned_by_longrope_have_nothing_in_common_with_others(longrope):  # noqa: F811
    served = engine(*longrope, prefix_bytes=2**24)
    near, far = list(range(33)), list(range(50))
    found, texts = serve(served, near, far)
    assert found == [0, 0]
    assert serve(served, near, far) == ([32, 32], texts)


def test_bytes_are_those_of_the_pages_and_stay_below_the_limit(model):
    model, params = model
    block = PAGE * cache.bytes_per_token(model.cfg, np.float32)
    state = cache.state_bytes(model.cfg, np.float32)
    served = engine(model, params, prefix_bytes=3 * (block + state))
    serve(served, SYSTEM)
    assert served.stats.prefix_bytes == 2 * (block + state)
    serve(served, SYSTEM[3:])
    assert 2 * block <= served.stats.prefix_bytes <= 3 * (block + state)


def tree_of(limit, stateful=False):
    """A tree of pages of 1000 bytes, and who holds them."""
    pages = Pages(1, 9)
    return Prefixes(limit, pages, 1000, stateful), pages


def grown(tree, pages, *texts):
    """The pages of the ends of texts, once a tree holds them and nobody else does."""
    taken = pages.take(0, len(texts))
    for text, page in zip(texts, taken, strict=True):
        assert tree.add(0, text, page)
    pages.release(taken)
    return taken


A, B, C = ([i] * PAGE for i in (1, 2, 3))


def test_the_least_recently_used_leaf_goes_first():
    tree, pages = tree_of(limit=3000)
    grown(tree, pages, A, A + B, A + C)
    assert len(tree.find(0, [*A, *B, 9])) == 2  # C is the oldest now
    grown(tree, pages, B)
    assert (tree.bytes, pages.held) == (3000, 3)
    assert len(tree.find(0, [*A, *C, 9])) == 1
    assert len(tree.find(0, [*A, *B, 9])) == 2
    assert not tree_of(limit=999)[0].add(0, C, 1)


def test_pages_that_are_needed_leave_the_tree_oldest_first_unless_others_hold_them():
    tree, pages = tree_of(limit=8000)
    _, b, c, d = grown(tree, pages, A, A + B, A + C, B)
    pages.hold([b])
    assert tree.make_room(0, 5)
    assert (pages.free(0), pages.holders(c), pages.holders(d)) == (5, 0, 1)
    assert not tree.make_room(0, 7)  # nor does anything go for that
    assert (pages.free(0), tree.loose(0), pages.holders(b)) == (5, 1, 2)
    assert tree.make_room(0, 6)
    assert len(tree.find(0, [*A, *B, 9])) == 2
    tree.clear()
    pages.release([b])
    assert (pages.free(0), pages.held, tree.bytes) == (8, 0, 0)


def test_the_last_token_is_left_to_be_read_and_kinds_are_apart():
    tree, pages = tree_of(limit=4000)
    (page,) = grown(tree, pages, A)
    assert tree.find(0, A) == []
    assert tree.find(0, [*A, 1]) == [(page, None)]
    assert tree.find(1, [*A, 1]) == []


def test_a_state_is_needed_to_go_on_from():
    tree, pages = tree_of(limit=8000, stateful=True)
    text = [*A, *B, *C]
    grown(tree, pages, A, A + B, text)
    assert tree.find(0, [*text, 1]) == []
    tree.add_state(0, A + B, np.zeros(250, np.float32))
    assert tree.bytes == 4000
    assert len(tree.find(0, [*text, 1])) == 2
