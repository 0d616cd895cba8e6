"""Guessing ahead changes how fast text comes and not which: the same, or its distribution."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from tests.inference.test_engine import compiled  # noqa: F401 (a fixture)
from zoo import cache, sharding
from zoo.config import MLA, MLP, Attention, Config, Layer, LongRope, Rope, Stack
from zoo.inference import speculative
from zoo.inference.engine import Engine, Request
from zoo.inference.generate import pad
from zoo.inference.sampling import Sampling, keep
from zoo.inference.speculative import speculate

VOCAB, DIM = 6, 16
LOCAL = Layer(Attention(2, 1, 8, Rope(8), window=4), MLP(24))
FULL = Layer(Attention(2, 2, 8, Rope(8)), MLP(24))
LATENT = Layer(MLA(2, None, 8, 6, 4, 6, Rope(4)), MLP(24))
CFG = Config(VOCAB, DIM, (Stack(2, (LOCAL, FULL)),), mtp=(LATENT, LOCAL))
SMALL = Config(VOCAB, DIM, (Stack(1, (LOCAL,)),))
PROMPTS = [[3, 1, 4, 1, 5], [2], [i * i % VOCAB for i in range(40)]]


@pytest.fixture(scope="module")
def made():
    model = zoo.Decoder(CFG)
    return model, random_params(model)


@pytest.fixture(scope="module")
def small():
    model = zoo.Decoder(SMALL)
    return model, random_params(model, seed=1)


@pytest.fixture(params=["own", "other"])
def draft(request, small):
    """None for the model's own layer of prediction, or a smaller model."""
    return None if request.param == "own" else small


@pytest.mark.parametrize("depth", [0, 1])
def test_a_draft_in_pieces_is_that_of_the_whole(made, depth):
    model, params = made
    hidden = jax.random.normal(jax.random.key(1), (2, 20, DIM))
    tokens = jax.random.randint(jax.random.key(2), (2, 20), 0, VOCAB)
    run = jax.jit(lambda *args, **kw: model.apply(params, depth, *args, method="draft", **kw))
    want = run(hidden, tokens).hidden
    state = cache.init_draft(CFG, 2, 24, 24, spare=3, depth=depth, dtype=jnp.float32)
    got = []
    for start, stop in itertools.pairwise((0, 9, 10, 20)):
        wrong = run(hidden[:, :3], (tokens[:, :3] + 1) % VOCAB, cache=state).cache
        state = wrong._replace(lengths=wrong.lengths - 3)  # as a guess that is taken back
        out = run(hidden[:, start:stop], tokens[:, start:stop], cache=state)
        state, _ = out.cache, got.append(out.hidden)
    np.testing.assert_allclose(jnp.concatenate(got, axis=1), want, rtol=0, atol=1e-5)
    assert state.lengths.tolist() == [20, 20]


@pytest.mark.parametrize("eos", [(98, 99), (2, 5)], ids=["never", "soon"])
def test_greedy_text_is_the_same(made, draft, eos):
    want = zoo.generate(*made, PROMPTS, 24, eos=eos)
    found = speculate(*made, PROMPTS, 24, draft=draft, ahead=3, eos=eos)
    assert found.tokens == want
    assert 0 <= found.accepted <= found.guessed == 3 * round(found.guessed / 3)


class Within:
    """Allows some tokens, always."""

    def __init__(self, *tokens):
        self.mask = np.isin(np.arange(VOCAB), tokens)

    def allowed(self):
        return self.mask

    def accept(self, token):
        assert self.mask[token]


REQUESTS = [
    Request(PROMPTS[2], 20, temperature=1.5, seed=1, logprobs=2),
    Request(PROMPTS[0], 20, temperature=1.2, top_k=4, seed=2, frequency_penalty=0.3),
    Request(PROMPTS[1], 12, constraint=Within(1, 2, 5)),
    Request(PROMPTS[2], 20, temperature=0.9, seed=3, logit_bias={3: 1.0}, stop_tokens=(0,)),
    Request(PROMPTS[0], 1),
]


def engine(made, **options):
    return Engine(*made, slots=3, length=64, chunk=32, **options)


def ended(served, requests):
    """The tickets of requests that came together, and how each ended."""
    tickets = [served.submit(request) for request in requests]
    while served.step():
        pass
    return tickets, [ticket.drain() for ticket in tickets]


@pytest.fixture(scope="module")
def plain(made):
    """What an engine says without a draft."""
    return engine(made).run(REQUESTS)


def test_an_engine_with_a_draft_says_the_same_in_fewer_steps(made, draft, plain, compiled):  # noqa: F811
    """Whatever a request asks for; and it guesses as `speculate` does, in as many rounds."""
    served = engine(made, draft=draft, ahead=3, prefix_bytes=2**20)
    served.warm()
    compiled.clear()
    tickets, said = ended(served, [Request(p, 24) for p in PROMPTS])
    greedy, kept = [[t.id for t in tokens] for tokens in said], served.stats.accepted_tokens
    for _ in range(2):  # read, then found in the prefix cache
        tickets_, said = ended(served, REQUESTS)
        for tokens, wanted in zip(said, plain, strict=True):
            assert [(t.id, t.finish) for t in tokens] == [(t.id, t.finish) for t in wanted]
        for token, wanted in zip(said[0], plain[0], strict=True):
            np.testing.assert_allclose(token.logprob, wanted.logprob, atol=1e-4)
            assert [i for i, _ in token.top] == [i for i, _ in wanted.top]
    assert served.stats.prefix_hits
    assert tickets_[2].guessed_tokens == 0  # what may come behind a token is not known
    assert not compiled
    found = speculate(*made, PROMPTS, 24, draft=draft, ahead=3, eos=(98, 99))
    assert greedy == found.tokens
    assert sum(t.guessed_tokens for t in tickets) == found.guessed
    assert 0 < kept == sum(t.accepted_tokens for t in tickets) <= found.accepted


def test_an_engine_accepts_all_guesses_of_the_model_itself(made):
    """Also of sampled texts: the draft draws by the same numbers."""
    served = engine(made, draft=made, ahead=3)
    requests = [
        Request(p, 13, temperature=t, seed=5) for p, t in zip(PROMPTS, (0, 1, 2), strict=True)
    ]
    for ticket in ended(served, requests)[0]:
        assert (ticket.guessed_tokens, ticket.accepted_tokens) == (9, 9)


def test_guesses_are_those_of_the_draft_without_a_cache(made):
    """Two guesses in a row, before and after guesses were taken back: else few would be kept."""
    model, params = made
    plan, weights = speculative._Plan(model, model, True, 12, 2), (params, params)
    begin, step, guess = (
        jax.jit(f, static_argnums=0)
        for f in (speculative._begin, speculative._round, speculative._guess)
    )
    key, sampling, stops = jax.random.key(4), Sampling(1.3), np.array([99], np.int32)
    tokens, lengths = pad(PROMPTS[:2])
    state = begin(plan, weights, tokens, lengths, sampling, stops, key)
    drafted = jax.jit(functools.partial(model.apply, params, 0, method="draft"))
    hidden_of = jax.jit(functools.partial(model.apply, params, method="hidden"))
    for round_key in jax.random.split(key, 4):
        guesses, q, _ = guess(plan, weights, sampling, round_key, state)
        for b, prompt in enumerate(PROMPTS[:2]):
            text = [*prompt, *state.made[b, : state.count[b]].tolist(), int(guesses[b, 0])]
            row = np.zeros((1, 25), np.int32)
            row[0, : len(text)] = text
            hidden = hidden_of(row[:, :-1]).hidden
            first = drafted(hidden, row[:, 1:]).hidden
            known = len(text) - 3  # the newest state of the model: the draft goes on from its own
            own = first[:, known : known + 1]
            second = drafted(hidden.at[:, known + 1 : known + 2].set(own), row[:, 1:]).hidden
            both = jnp.concatenate((own, second[:, known + 1 : known + 2]), axis=1)
            logits = model.apply(params, both, method="logits")[0]
            np.testing.assert_allclose(q[b], jax.nn.softmax(logits / 1.3), atol=1e-5)
        state = step(plan, weights, sampling, stops, round_key, state)
    assert 0 < state.accepted < state.guessed


def test_devices_share_a_model_and_its_draft(made, small, plain):
    """In `speculate`, and in an engine whose rows they share too, with a draft that each has."""
    model, params = made
    prompts = [*PROMPTS, [5, 5]]
    mesh, rules = zoo.make_mesh("fsdp=4,tensor=2"), {**sharding.find_rules(), "kv_heads": None}
    placed = jax.device_put(params, sharding.shardings(CFG, mesh, rules))
    with sharding.use(mesh, rules):
        found = speculate(model, placed, prompts, 12, ahead=3)
    assert found.tokens == zoo.generate(model, params, prompts, 12)
    for draft in (None, small):
        options = dict(slots=4, length=64, chunk=32, mesh=mesh, rules=rules)
        served = Engine(model, placed, draft=draft, ahead=3, **options)
        _, said = ended(served, REQUESTS)
        assert [[t.id for t in text] for text in said] == [[t.id for t in text] for text in plain]
        assert served.stats.accepted_tokens


def test_a_model_accepts_all_of_its_own_guesses(made):
    found = speculate(*made, PROMPTS, 25, draft=made, ahead=3)
    assert found.acceptance == 1.0
    assert found.passes == 6  # one token with the prompts, then four at a time
    assert found.guessed == 6 * 3 * len(PROMPTS)


def exact(model, params, prompt, count, sampling):
    """The probability of every continuation of `count` tokens, f32[V ** count], in order."""
    texts = np.array(list(itertools.product(range(VOCAB), repeat=count)))
    rows = np.concatenate((np.tile(prompt, (len(texts), 1)), texts), axis=1)
    logits = model.apply(params, rows).logits[:, len(prompt) - 1 : -1]
    probs = jax.nn.softmax(keep(logits / sampling.temperature, sampling), axis=-1)
    chosen = np.take_along_axis(np.asarray(probs), texts[..., None], axis=-1)
    return chosen[..., 0].prod(-1)


def test_sampled_text_has_the_same_distribution(made, draft):
    """Pearson's chi-squared of 4096 texts of three tokens, rare ones taken together."""
    prompt, rows, new = [3, 1, 4], 4096, 3
    options = dict(temperature=1.5, top_k=4, rng=jax.random.key(3))
    found = speculate(*made, [prompt] * rows, new, draft=draft, ahead=2, **options)
    assert 0.1 < found.acceptance < 0.9  # so that both ways to a token are taken
    places = np.array(found.tokens) @ [VOCAB**2, VOCAB, 1]
    seen = np.bincount(places, minlength=VOCAB**new)
    want = rows * exact(*made, prompt, new, Sampling(1.5, 4))
    assert not seen[want == 0].any()
    rare = want < 5
    seen, want = (np.append(t[~rare], t[rare].sum()) for t in (seen, want))
    want = np.maximum(want, 1e-9)
    assert ((seen - want) ** 2 / want).sum() < chi_squared(len(want) - 1)


def chi_squared(freedom):
    """What chance exceeds once in about 30 000 (Wilson and Hilferty's approximation)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.0 * (2 / (9 * freedom)) ** 0.5) ** 3


def longrope():
    scaling = LongRope((1.0,) * 4, (2.0,) * 4, 16, 1.0, 1.2)
    mixer = dataclasses.replace(FULL.mixer, rope=Rope(8, scaling=scaling))
    layer = dataclasses.replace(FULL, mixer=mixer)
    return zoo.Decoder(Config(VOCAB, DIM, (Stack(1, (layer,)),)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(ahead=32), "ahead=32 must be 1 to 31"),
        (dict(draft=(None, {})), "ahead=0 must be 1 to 31"),
        (dict(ahead=2, draft=(zoo.Decoder(CONFIGS["dense"]), {})), "draft has a vocabulary of 97"),
    ],
)
def test_an_engine_refuses_what_cannot_guess(made, options, says):
    with pytest.raises(ValueError, match=says):
        engine(made, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(ahead=0), "ahead=0 must be at least 1"),
        (dict(temperature=-1.0), "temperature=-1.0 must be positive"),
        (dict(max_new_tokens=2046), "model reads up to 2051 tokens"),
        (dict(draft=(zoo.Decoder(CONFIGS["dense"]), {})), "draft has a vocabulary of 97"),
        (dict(draft=(longrope(), {}), max_new_tokens=20), "beyond the border of its LongRope"),
    ],
)
def test_what_cannot_be_done_is_refused(made, options, says):
    with pytest.raises(ValueError, match=says):
        speculate(*made, [[1]], **options)


def test_a_model_needs_something_to_guess_with(small):
    with pytest.raises(ValueError, match="it has no mtp"):
        speculate(*small, [[1]])


def test_recurrences_cannot_take_guesses_back():
    model = zoo.Decoder(CONFIGS["delta"])
    with pytest.raises(ValueError, match="model has recurrent layers"):
        speculate(model, {}, [[1]], draft=(model, {}))
