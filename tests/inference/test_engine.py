"""An engine's texts against those of `generate`, whoever shares the batch, and its bookkeeping."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from zoo import sharding
from zoo.config import LongRope, Rope, Stack
from zoo.inference import programs
from zoo.inference.engine import Engine, Request

PROMPTS = [[3, 14, 15, 92, 65], [35], [i % 97 for i in range(40)], [7 * i % 97 for i in range(70)],
           [5 * i % 97 for i in range(17)]]  # fmt: skip
LONG = [3 * i % 97 for i in range(252)]
NEW = 8


def ids(tokens):
    return [token.id for token in tokens]


def engine(model, params, **options):
    return Engine(model, params, **{"slots": 3, "length": 96, "chunk": 32, **options})


def staggered(served, requests):
    """The tokens of requests that arrive while others are served: two, then one every few steps."""
    tickets = [served.submit(request) for request in requests[:2]]
    for request in requests[2:]:
        for _ in range(3):
            served.step()
        tickets.append(served.submit(request))
    while served.step():
        pass
    assert all(ticket.done and ticket.error is None for ticket in tickets)
    return [ids(ticket.drain()) for ticket in tickets]


def is_greedy(model, params, prompts, texts):
    """Whether every token made is the likeliest of one forward pass without a cache.

    It has one shape for all tests, so that XLA compiles it once for each model.
    """
    rows = np.zeros((len(PROMPTS), 96), np.int32)
    for row, prompt, made in zip(rows, prompts, texts, strict=False):
        row[: len(prompt) + len(made)] = [*prompt, *made]
    best = np.asarray(jax.jit(lambda rows: model.apply(params, rows).logits.argmax(-1))(rows))
    return all(
        row[len(prompt) - 1 : len(prompt) - 1 + len(made)].tolist() == made
        for row, prompt, made in zip(best[: len(prompts)], prompts, texts, strict=True)
    )


def test_greedy_texts_are_those_of_a_forward_pass(made):
    model, params, _ = made
    texts = staggered(engine(model, params), [Request(p, NEW) for p in PROMPTS])
    assert [len(text) for text in texts] == [NEW] * len(PROMPTS)
    assert is_greedy(model, params, PROMPTS, texts)


@pytest.fixture(scope="module")
def small():
    model = zoo.Decoder(CONFIGS["mla_moe"])
    return model, random_params(model)


@pytest.fixture(scope="module")
def served(small):
    return engine(*small)


@pytest.mark.parametrize("filters", [{}, dict(top_k=20, top_p=0.9, min_p=0.01)])
def test_sampled_texts_are_those_of_generate_alone(small, served, filters):
    """Beside a greedy one, and one that is filtered otherwise."""
    kinds = [(1.5, 1), (0.8, 2), (2.0, 2**32 - 1)]
    prompts = [PROMPTS[i] for i in (0, 1, 4)]
    requests = [
        Request(p, NEW, temperature=t, seed=s, **filters)
        for p, (t, s) in zip(prompts, kinds, strict=True)
    ]
    others = [Request(PROMPTS[3], NEW), Request(PROMPTS[2], NEW, temperature=1.0, top_k=3)]
    made = staggered(served, [*requests[:1], *others, *requests[1:]])
    for prompt, (t, s), tokens in zip(prompts, kinds, [made[0], *made[3:]], strict=True):
        options = dict(temperature=t, rng=jax.random.key(s), **filters)
        assert tokens == zoo.generate(*small, [prompt], NEW, **options)[0]


def test_stop_tokens_end_a_text_and_are_kept(served):
    (free,) = served.run([Request(PROMPTS[0], NEW)])
    assert [token.finish for token in free] == [None] * (NEW - 1) + ["length"]
    stop = free[3].id
    (held,) = served.run([Request(PROMPTS[0], NEW, stop_tokens=(96, stop))])
    assert ids(held) == ids(free)[: ids(free).index(stop) + 1]
    assert held[-1].finish == "stop"


def test_logprobs_are_the_models(small, served):
    model, params = small
    request = Request(PROMPTS[2], NEW, logprobs=3, prompt_logprobs=True, temperature=1.3, seed=5)
    ticket = served.submit(request)
    while served.step():
        pass
    tokens = ticket.drain()
    text = jnp.array([[*request.prompt, *ids(tokens)]])
    want = np.asarray(jax.nn.log_softmax(model.apply(params, text).logits[0]))
    assert ticket.prompt_logprobs[0] is None
    for place, token in enumerate([*ticket.prompt_logprobs[1:], *tokens]):
        assert token.id == text[0, place + 1]
        np.testing.assert_allclose(token.logprob, want[place, token.id], atol=1e-4)
        best = np.argsort(-want[place])[:3]
        assert [t for t, _ in token.top] == best.tolist()
        np.testing.assert_allclose([p for _, p in token.top], want[place, best], atol=1e-4)
    assert len(ticket.prompt_logprobs) == len(request.prompt)


def test_a_prompt_can_be_scored_alone(served):
    ticket = served.submit(Request(PROMPTS[0], 0, prompt_logprobs=True))
    while served.step():
        pass
    assert ticket.done
    assert ticket.drain() == []
    assert [token.top for token in ticket.prompt_logprobs[1:]] == [()] * 4


def test_penalties_and_bias_change_the_logits_as_they_say(small, served):
    """Greedy by hand from whole forward passes, one edit at a time."""
    model, params = small
    forward = jax.jit(lambda row: model.apply(params, row).logits[0])
    edits = [
        dict(repetition_penalty=1.7),
        dict(presence_penalty=1.5, frequency_penalty=0.7),
        dict(logit_bias={3: -math.inf, 50: 1.5}),
    ]
    made = served.run([Request(PROMPTS[0], NEW, **edit) for edit in edits])
    for edit, tokens in zip(edits, made, strict=True):
        text = list(PROMPTS[0])
        for _ in range(NEW):
            row = np.zeros((1, 16), np.int32)
            row[0, : len(text)] = text
            logits = np.array(forward(row)[len(text) - 1])
            for token in set(text) if "repetition_penalty" in edit else ():
                logits[token] *= 1 / 1.7 if logits[token] > 0 else 1.7
            for token in text[len(PROMPTS[0]) :] if "presence_penalty" in edit else ():
                logits[token] -= 0.7
            for token in set(text[len(PROMPTS[0]) :]) if "presence_penalty" in edit else ():
                logits[token] -= 1.5
            for token, bias in edit.get("logit_bias", {}).items():
                logits[token] += bias
            text.append(int(logits.argmax()))
        assert ids(tokens) == text[len(PROMPTS[0]) :]


class Only:
    """Allows tokens of a list in turn, each time also one more, then nothing."""

    def __init__(self, words):
        self.words, self.said = words, []

    def allowed(self):
        mask = np.zeros(97, bool)
        mask[[token for token in self.words[len(self.said) : len(self.said) + 1]]] = True
        return mask

    def accept(self, token):
        self.said.append(token)


def test_a_constraint_is_obeyed_to_its_end(small, served):
    constraint = Only([11, 12, 13])
    bound, free = served.run(
        [Request(PROMPTS[0], NEW, constraint=constraint), Request(PROMPTS[1], NEW)]
    )
    assert (ids(bound), bound[-1].finish) == ([11, 12, 13], "stop")
    assert constraint.said == [11, 12, 13]
    assert ids(free) == zoo.generate(*small, [PROMPTS[1]], NEW)[0]


def test_a_constraint_that_fails_ends_its_request_only(small, served):
    broken = served.submit(Request(PROMPTS[0], NEW, constraint=Only([])))
    failing = Only([11, 12])
    failing.accept = lambda token: 1 / 0
    late = served.submit(Request(PROMPTS[0], NEW, constraint=failing))
    (whole,) = served.run([Request(PROMPTS[1], NEW)])
    assert broken.done
    assert "no token that the text could begin with" in str(broken.error)
    assert isinstance(late.error, ZeroDivisionError)
    assert ids(whole) == zoo.generate(*small, [PROMPTS[1]], NEW)[0]
    assert served.stats.active == 0


@pytest.mark.parametrize(("barred", "made"), [(11, 0), (12, 1)])
def test_a_bias_against_all_that_a_constraint_allows_is_named(served, barred, made):
    """Before a token that is none of them is chosen."""
    constraint = Only([11, 12])
    bias = {barred: -math.inf, 50: -math.inf}
    asked = Request(PROMPTS[0], NEW, constraint=constraint, logit_bias=bias)
    ticket = served.submit(asked)
    while served.step():
        pass
    assert f"allows after {made} new tokens, token {barred} for one" in str(ticket.error)
    assert ids(ticket.drain()) == constraint.said == [11, 12][:made]
    constraint = Only([11, 12])
    both = Request(PROMPTS[0], NEW, constraint=constraint, logit_bias={50: -math.inf})
    assert ids(served.run([both])[0]) == [11, 12]


def test_cancelling_frees_the_slot_at_the_next_step(served):
    before = served.stats.requests
    tickets = [served.submit(Request(PROMPTS[0], 60)) for _ in range(4)]
    for _ in range(4):
        served.step()
    assert (served.stats.active, served.stats.waiting) == (3, 1)
    tickets[0].cancel()
    served.step()
    assert (served.stats.active, served.stats.waiting) == (3, 0)
    assert tickets[0].done
    tickets.append(served.submit(Request(PROMPTS[0], 60)))
    tickets[-1].cancel()  # also of one that has no slot yet
    served.step()
    assert (served.stats.active, served.stats.waiting, tickets[-1].done) == (3, 0, True)
    for ticket in tickets:
        ticket.cancel()
    served.step()
    assert (served.stats.active, served.stats.requests - before) == (0, 5)
    assert served.stats.held_bytes == 0
    assert not served.step()


def test_counts_are_true_at_any_moment(served):
    """Of a request that goes from the queue to a seat, and of a token that somebody may have."""
    seen, made = [], served.stats.generated_tokens

    class Queue(collections.deque):
        def remove(self, ticket):
            super().remove(ticket)
            seen.append(served.stats.active)

    class Tokens(collections.deque):
        def append(self, token):
            super().append(token)
            assert served.stats.generated_tokens - made == len(self)

    before, served._queue = served._queue, Queue()
    ticket = served.submit(Request(PROMPTS[0], NEW))
    ticket._tokens = Tokens()
    while served.step():
        pass
    served._queue = before
    assert (seen, len(ticket.drain())) == ([1], NEW)


def test_a_failing_device_ends_those_seated_and_no_others(small, served, monkeypatch):
    seated = served.submit(Request(PROMPTS[0], NEW))
    served.step()
    waiting = served.submit(Request(PROMPTS[1], NEW))

    def fail(*args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(served._batch, "decode", fail)
        patch.setattr(served, "_admit", lambda: None)
        with pytest.raises(RuntimeError):
            served.step()
    assert (seated.done, str(seated.error)) == (True, "out of memory")
    assert served.stats.held_bytes == 0
    while served.step():
        pass
    assert ids(waiting.drain()) == zoo.generate(*small, [PROMPTS[1]], NEW)[0]


@pytest.fixture
def compiled():
    """Counts the programs that XLA compiles."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.clear_event_listeners()


def test_nothing_compiles_once_warm(compiled):
    """Also where a text outgrows the pages that a step reads of short ones."""
    model = zoo.Decoder(CONFIGS["dense"])
    params = random_params(model)
    served = engine(model, params, slots=2, length=490, chunk=64, prefix_bytes=2**24)
    served.warm()
    assert compiled
    compiled.clear()
    edits = dict(presence_penalty=1.0, logit_bias={3: 1.0}, logprobs=2, prompt_logprobs=True)
    requests = [Request(PROMPTS[0], NEW, constraint=Only([1, 2])), Request(PROMPTS[3], NEW)]
    requests += [Request(p, NEW, temperature=1.0, top_p=0.9, **edits) for p in PROMPTS[:3]]
    requests += [Request([*PROMPTS[3][:40], 1], NEW), Request(LONG, NEW)]
    *_, made = staggered(served, requests)
    assert served.stats.prefix_hits
    assert not compiled
    assert made == zoo.generate(model, params, [LONG], NEW)[0]


def test_devices_share_a_model(small):
    """Rows, heads and experts over a mesh; and nothing compiles again once the cache was passed
    on."""
    model, params = small
    mesh = zoo.make_mesh("data=2,tensor=2,expert=2")
    rules = {**sharding.find_rules(), "vocab": None}  # 97 does not divide
    placed = jax.device_put(params, sharding.shardings(model.cfg, mesh, rules))
    with pytest.raises(ValueError, match="rows does not divide over data=2 x expert=2: 4 would"):
        engine(model, placed, mesh=mesh, rules=rules)
    served = engine(model, placed, slots=4, mesh=mesh, rules=rules, prefix_bytes=2**24)
    pages = {leaf.addressable_shards[0].data.shape[1] for leaf in jax.tree.leaves(
        served._batch._cache.stacks)}  # fmt: skip
    assert pages == {served._batch.pages}  # of one row, and those of prompts
    requests = [Request(p, NEW, logprobs=0) for p in PROMPTS]
    texts = staggered(served, requests)
    assert is_greedy(model, params, PROMPTS, texts)
    before = programs.decode._cache_size(), programs.extend._cache_size()
    assert staggered(served, requests) == texts
    assert (programs.decode._cache_size(), programs.extend._cache_size()) == before
    for prompt in (PROMPTS[3], PROMPTS[2]):  # a row is taken where the text's beginning is
        ticket = served.submit(Request(prompt, 1))
        served.step()
        assert ticket.cached_tokens == len(prompt) // 32 * 32


@pytest.fixture(scope="module")
def longrope():
    """Beyond 36 tokens all keys are turned in another way."""
    cfg = CONFIGS["dense"]
    (layer,) = cfg.stacks[0].layers
    scaling = LongRope((1.0,) * 8, tuple(range(2, 10)), 36, 1.0, 1.2)
    mixer = dataclasses.replace(layer.mixer, rope=Rope(16, scaling=scaling))
    layer = dataclasses.replace(layer, mixer=mixer)
    model = zoo.Decoder(dataclasses.replace(cfg, stacks=(Stack(1, (layer,)),)))
    return model, random_params(model)


def test_texts_that_begin_beyond_or_outgrow_longrope(longrope):
    prompts = [list(range(33)), list(range(32)), list(range(70)), PROMPTS[0]]
    want = zoo.generate(*longrope, prompts, NEW)
    assert staggered(engine(*longrope), [Request(p, NEW) for p in prompts]) == want


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(prompt=()), "prompt is empty"),
        (dict(max_new_tokens=0), "max_new_tokens=0 must be at least 1"),
        (dict(seed=-1), "seed=-1 must be at least 0"),
        (dict(logprobs=21), "logprobs=21 must be 0 to 20"),
        (dict(temperature=-1.0), "temperature=-1.0 must be positive"),
        (dict(frequency_penalty=math.nan), "frequency_penalty=nan must be a finite number"),
        (dict(repetition_penalty=0.0), "repetition_penalty=0.0 must be positive"),
        (dict(frequency_penalty=1e39), r"frequency_penalty=1e\+39 must be a finite number within"),
        (dict(temperature=1e-40), "temperature=1e-40 must be positive, at least 1e-30"),
        (dict(max_new_tokens=1.5), "max_new_tokens=1.5 must be a whole number"),
        (dict(logprobs=1.5), "logprobs=1.5 must be a whole number"),
        (dict(prompt=(1.5,)), r"prompt=\(1.5,\) must be token ids: whole numbers"),
        (dict(prompt=5), "prompt=5 must be token ids"),
        (dict(logit_bias={1: math.inf}), r"logit_bias\[1\]=inf must be a finite number"),
        (dict(logit_bias={1.5: 1.0}), "logit_bias={1.5: 1.0} must be token ids"),
        (dict(logit_bias=[3]), r"logit_bias=\[3\] must be a dict"),
        (dict(logit_bias=dict.fromkeys(range(97), -math.inf)), "is -inf for every token"),
        (dict(prompt=(97,)), "prompt has token 97, outside the vocabulary of 97"),
        (dict(stop_tokens=(-1,)), "stop_tokens has token -1"),
        (dict(logit_bias={97: 1.0}), "logit_bias has token 97"),
        (dict(max_new_tokens=96), "would pass the 96 of a slot"),
    ],
)
def test_bad_requests_are_refused_at_once(served, options, says):
    with pytest.raises(ValueError, match=says):
        served.submit(Request(**{"prompt": (1,), **options}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(slots=0), "slots=0 must be at least 1"),
        (dict(length=4096), "length=4096 must be 1 to the model's max_length=2048"),
        (dict(chunk=48), "chunk=48 must be a power of two"),
        (dict(slots=1.5), "slots=1.5 must be a whole number"),
        (dict(prefix_bytes=-1), "prefix_bytes=-1 must be at least 0"),
        (dict(prefix_bytes=2**50), r"no memory for a cache of \d+ bytes in pages: lower slots=3"),
        (dict(cache_dtype=jnp.int32), "cache_dtype=int32 must be int8 or a float type"),
        (dict(cache_dtype="foo"), "cache_dtype='foo' must be int8 or a float type"),
        (dict(cache_bytes=2**10), "cache_bytes=1024 does not hold one text of length=96: give at"),
    ],
)
def test_bad_sizes_are_refused_at_once(small, options, says):
    with pytest.raises(ValueError, match=says):
        engine(*small, **options)
