"""Streaming against `generate`: the same tokens, one at a time, whatever was read before."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from zoo.config import LongRope, Rope, Stack
from zoo.inference import stream as streaming
from zoo.inference.stream import Session, stream

PROMPT = [3, 14, 15, 92, 65]
SAMPLED = dict(temperature=1.5, top_k=50, top_p=0.95, rng=jax.random.key(5))


@pytest.fixture(scope="module")
def small():
    model = zoo.Decoder(CONFIGS["dense"])
    return model, random_params(model)


@pytest.fixture(scope="module")
def latent():
    """The other kind of cache, which is read in another way once it holds something."""
    model = zoo.Decoder(CONFIGS["mla_moe"])
    return model, random_params(model)


@pytest.fixture(scope="module")
def recurrent():
    """A state beside the slots, which cannot go back."""
    model = zoo.Decoder(CONFIGS["delta"])
    return model, random_params(model)


@pytest.fixture(autouse=True)
def few_slots(monkeypatch):
    """Caches of 64 slots, so that they grow within a test."""
    monkeypatch.setattr(streaming, "SLOTS", 64)


@pytest.fixture
def read(monkeypatch):
    """Lengths of the pieces that are read."""
    lengths, real = [], streaming._read

    def spy(model, params, piece, length, *args):
        lengths.append(int(length))
        return real(model, params, piece, length, *args)

    monkeypatch.setattr(streaming, "_read", spy)
    return lengths


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_tokens_are_those_of_generate(small, options):
    for prompt in (PROMPT, [35], list(range(30))):  # the last outgrows its 32 slots
        wanted = zoo.generate(*small, [prompt], 6, **options)[0]
        assert list(stream(*small, prompt, 6, **options)) == wanted


def test_ends_with_eos(small):
    free = list(stream(*small, PROMPT, 6))
    unused = next(i for i in range(97) if i not in free)
    held = list(stream(*small, PROMPT, 6, eos=[unused, free[2]]))
    assert held == free[: free.index(free[2]) + 1]


@pytest.mark.parametrize("kind", ["small", "latent", "recurrent"])
def test_a_conversation_reads_what_is_new(kind, read, request):
    model = request.getfixturevalue(kind)
    session, text = Session(*model), PROMPT
    for turn, new in enumerate(([7, 8, 9], [10] * 4, [11])):
        text = text + new
        made = list(session.stream(text, 6))
        assert made == zoo.generate(*model, [text], 6)[0]
        # The last token made was shown and not read, so the next turn reads it too.
        assert read[turn * 6] == (len(text) if turn == 0 else len(new) + 1)
        text = text + made
    assert len(text) > 2 * len(PROMPT)


def test_a_text_that_turns_off_is_read_from_there(small, read):
    session, text = Session(*small), list(range(20))
    list(session.stream(text, 6))
    other = [*text[:12], 90, 91]
    read.clear()
    assert list(session.stream(other, 6)) == zoo.generate(*small, [other], 6)[0]
    assert read[0] == 2
    assert list(session.stream(other, 6)) == zoo.generate(*small, [other], 6)[0]
    assert read[6] == 1  # logits need one token at least
    assert list(session.stream(PROMPT, 6)) == zoo.generate(*small, [PROMPT], 6)[0]
    assert read[12] == len(PROMPT)  # nothing in common: from the beginning


def test_a_recurrence_reads_a_text_that_turns_off_again(recurrent, read):
    session, text = Session(*recurrent), list(range(20))
    list(session.stream(text, 6))
    read.clear()
    assert list(session.stream(text, 6)) == zoo.generate(*recurrent, [text], 6)[0]
    assert read[0] == len(text)


@pytest.fixture(scope="module")
def longrope():
    """Beyond 16 tokens all keys are turned in another way, so that none can be kept."""
    cfg = CONFIGS["dense"]
    (layer,) = cfg.stacks[0].layers
    scaling = LongRope((1.0,) * 8, tuple(range(2, 10)), 16, 1.0, 1.2)
    mixer = dataclasses.replace(layer.mixer, rope=Rope(16, scaling=scaling))
    layer = dataclasses.replace(layer, mixer=mixer)
    model = zoo.Decoder(dataclasses.replace(cfg, stacks=(Stack(1, (layer,)),)))
    return model, random_params(model)


def test_a_text_that_outgrows_longrope_is_read_again(longrope, read):
    model, params = longrope
    session, long = Session(model, params), [*PROMPT, *range(15)]
    for text, new in ((PROMPT, 5), ([*PROMPT, *PROMPT], 5), (long, 20), (PROMPT, 5)):
        read.clear()
        made = list(session.stream(text, 4))
        assert made == zoo.generate(model, params, [text], 4)[0]
        assert made[0] == model.apply(params, jnp.array([text])).logits[0, -1].argmax()
        assert read[0] == new


def test_a_stream_that_outgrows_longrope_fills_its_cache_again(longrope, read):
    model, params = longrope
    prompt, wanted = list(range(13)), []
    for _ in range(6):
        wanted += zoo.generate(model, params, [prompt + wanted], 1)[0]
    assert zoo.generate(model, params, [prompt, PROMPT], 6)[0] == wanted
    assert list(stream(model, params, prompt, 6)) == wanted
    assert read == [13, 1, 1, 1, 17, 1]


def test_a_broken_off_stream_leaves_the_session_sound(small):
    session = Session(*small)
    broken = session.stream(PROMPT, 6)
    begun = [next(broken) for _ in range(3)]
    wanted = zoo.generate(*small, [PROMPT], 6)[0]
    assert begun == wanted[:3]
    text = PROMPT + begun
    assert list(session.stream(text, 6)) == zoo.generate(*small, [text], 6)[0]
    with pytest.raises(ValueError, match="this stream has ended"):
        next(broken)
    assert list(session.stream(PROMPT, 6)) == wanted


def test_few_shapes_are_compiled(small):
    count = streaming._read._cache_size
    list(stream(*small, list(range(30)), 6))
    before = count()
    for prompt in ([1], list(range(28))):
        list(stream(*small, prompt, 8, eos=96))
    assert count() == before


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ([], {}, "prompt 0 is empty"),
        ([97], {}, "token 97, outside the vocabulary of 97"),
        ([1], {"max_new_tokens": 2048}, "would pass the model's max_length=2048"),
        ([1], {"temperature": -1.0}, "temperature=-1.0 must be positive"),
    ],
)
def test_bad_input_is_refused_before_the_first_token_is_asked_for(small, prompt, options, says):
    with pytest.raises(ValueError, match=says):
        stream(*small, prompt, **options)
