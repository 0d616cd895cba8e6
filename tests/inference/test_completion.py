"""Text above the engine: stop strings, bytes of tokens, and what a failing engine leaves behind."""

import threading

import jax
import numpy as np
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from tests.inference.test_talk import SEVERAL, byte_fallback, byte_level
from tests.waiting import LONG
from zoo.inference.completion import Busy, Completion, EngineFailed, Runner
from zoo.inference.embed import Embedder
from zoo.inference.engine import Engine, Request
from zoo.inference.text import Cut, Spelling


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_bytes_of_tokens_make_up_the_text(make):
    tokenizer = make()
    ids = tokenizer.encode(SEVERAL).ids
    spelling = Spelling(tokenizer)
    assert b"".join(map(spelling.bytes, ids)).decode().lstrip(" ") == SEVERAL
    assert spelling.bytes(tokenizer.get_vocab_size() + 5) == b""
    half = next(i for i in ids if spelling.bytes(i) == "你".encode()[:1])
    assert spelling.text(half) == "bytes:\\xe4"


def test_text_is_cut_at_the_first_stop_wherever_the_pieces_end(rng):
    stops = ["abc", "bca", "cc"]
    for _ in range(300):
        text = "".join(rng.choice(list("abcd"), 12))
        places = [text.find(stop) for stop in stops if stop in text]
        want = text[: min(places, default=len(text))]
        cut, got, i = Cut(stops), "", 0
        while i < len(text):
            size = int(rng.integers(1, 4))
            got += cut.push(text[i : i + size])
            i += size
            assert want.startswith(got)
        assert got + cut.rest() == want
        assert (cut.found is None) == (not places)


class Faulty(Engine):
    """An engine whose device fails when it is told to.

    Attributes:
        faults: steps that will raise.
        broken: it cannot begin again either.
        held: it makes no step until this is set.
    """

    faults = 0
    broken = False

    def step(self):
        self.held.wait()
        if self.broken:
            raise RuntimeError("device lost")
        if self.faults and any(self._seats):
            self.faults -= 1
            decode, self._decode = self._decode, self._fault
            try:
                return super().step()
            finally:
                self._decode = decode
        return super().step()

    def _fault(self):
        raise RuntimeError("device hiccup")


@pytest.fixture(scope="module")
def made():
    model = zoo.Decoder(CONFIGS["dense"])
    return model, random_params(model)


@pytest.fixture
def engine(made):
    engine = Faulty(*made, slots=2, length=64)
    engine.held = threading.Event()
    engine.held.set()
    return engine


@pytest.fixture
def run(engine):
    """A runner whose steps can be waited for; it has found nothing to do, and rests."""
    stepped, steps = threading.Condition(), []

    def beat():
        with stepped:
            steps.append(len(steps))
            stepped.notify_all()

    runner = Runner(engine, capacity=4, after_step=beat)

    def until(condition):
        with stepped:
            seen = stepped.wait_for(condition, LONG)
            assert seen, f"{len(steps)} steps left {runner.load} jobs, failure={runner.failure}"

    runner.until = until
    until(lambda: steps)
    yield runner
    runner.close()


def text(answer, run) -> str:
    """All of an answer."""
    run.until(lambda: answer.job.done)
    return answer.read().text


def test_stop_strings_end_a_text_and_free_the_slot(made, run):
    model, params = made
    tokenizer = byte_level()
    tokens = zoo.generate(model, params, [[5, 6]], 40)[0]
    whole = tokenizer.decode(tokens)
    stop = whole[9:11]
    (job,) = run.submit([Request((5, 6), 40)])
    answer, got = Completion(job, tokenizer, stop=[stop]), ""
    while answer.finish is None:
        run.until(lambda: job.ticket._tokens or job.done)
        got += answer.read().text
    assert (got, answer.finish) == (whole[: whole.index(stop)], "stop")
    run.until(lambda: job.done)
    assert run.engine.stats.active == 0


def test_the_token_that_ends_a_text_is_counted_and_not_shown(made, run):
    model, params = made
    tokens = zoo.generate(model, params, [[5, 6]], 10)[0]
    (job,) = run.submit([Request((5, 6), 10, stop_tokens=(tokens[6],))])
    end = tokens.index(tokens[6])
    answer = Completion(job, byte_level())
    assert text(answer, run) == byte_level().decode(tokens[:end])
    assert (answer.finish, answer.tokens) == ("stop", end + 1)


def test_a_failed_step_fails_its_requests_and_the_next_are_answered(engine, run):
    before = run.submit([Request((5, 6), 10)])
    run.until(lambda: before[0].done)
    engine.faults = 1
    jobs = run.submit([Request((5, 6), 10)] * 4)
    run.until(lambda: all(job.done for job in jobs))
    failed = [job for job in jobs if job.ticket.error]
    assert 1 <= len(failed) <= 2
    assert run.failures == 1
    want = [token.id for token in before[0].drain()]
    said = [token.id for token in failed[0].drain()]
    assert said == want[: len(said)]
    with pytest.raises(EngineFailed, match="device hiccup"):
        failed[0].drain()
    for job in jobs:
        if job not in failed:
            assert [token.id for token in job.drain()] == want


def test_a_request_that_comes_while_a_step_fails_is_answered(engine, run):
    """It is no sign that the engine ends nobody: those seated are gone."""
    late, fault = [], engine._fault

    def submitting():
        late.extend(run.submit([Request((5, 6), 10)]))
        fault()

    engine._fault, engine.faults = submitting, 1
    (early,) = run.submit([Request((5, 6), 10)])
    run.until(lambda: early.done)
    assert early.drain()
    with pytest.raises(EngineFailed, match="device hiccup"):
        early.drain()
    run.until(lambda: late[0].done)
    assert len(late[0].drain()) == 10
    assert run.failure is None


class Dying:
    """Allows anything, and fails behind the fifth token."""

    left = 5

    def allowed(self):
        return np.ones(97, bool)

    def accept(self, token):
        self.left -= 1
        if not self.left:
            raise ValueError("nothing can follow")


@pytest.mark.parametrize("early", [False, True])
def test_what_was_said_before_a_failure_is_read_before_it_is_raised(made, run, early):
    """What waits for more text too: the beginning of a stop string, bytes of a character."""
    tokenizer = byte_level()
    want = tokenizer.decode(zoo.generate(*made, [[5, 6]], 5)[0])
    (job,) = run.submit([Request((5, 6), 10, constraint=Dying())])
    answer, got = Completion(job, tokenizer, stop=[f"{want[-1]} and more"]), ""
    while early and answer.tokens < 5:
        run.until(lambda: job.ticket._tokens)
        got += answer.read().text
    run.until(lambda: job.done)
    while len(got) < len(want):
        got += answer.read().text
    with pytest.raises(EngineFailed, match="nothing can follow"):
        answer.read()
    assert (got, answer.tokens, answer.finish) == (want, 5, None)


def test_an_engine_that_cannot_go_on_fails_everybody_and_says_so(engine, run):
    engine.broken = True
    jobs = run.submit([Request((5, 6), 10)] * 3)
    run.until(lambda: all(job.done for job in jobs))
    for job in jobs:
        with pytest.raises(EngineFailed, match="device lost"):
            Completion(job, byte_level()).read()
    with pytest.raises(EngineFailed, match="device lost"):
        run.submit([Request((5, 6), 10)])


def test_all_or_nothing_is_queued(run):
    with pytest.raises(ValueError, match="5 texts are more than the 4"):
        run.submit([Request((5,), 1)] * 5)
    run.engine.held.clear()
    jobs = run.submit([Request((5,), 1)] * 3)
    with pytest.raises(Busy, match="of 4 at most"):
        run.submit([Request((5,), 1)] * 2)
    assert run.load == 3
    run.engine.held.set()
    run.until(lambda: all(job.done for job in jobs))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        run.submit([Request((5,), 40), Request((10_000,), 1)])
    run.until(lambda: run.load == 0)


def test_embeddings_are_the_mean_state_of_length_one_whatever_the_padding(made):
    model, params = made
    embed = Embedder(model, params, 200)
    for tokens in ([3], [3, 4, 5], list(range(40))):
        hidden = model.apply(params, np.array([tokens]), method="hidden").hidden[0]
        mean = hidden.mean(0)
        np.testing.assert_allclose(embed(tokens), mean / np.linalg.norm(mean), atol=2e-5)
    for tokens in ([], [0] * 201, [97]):
        with pytest.raises(ValueError, match=r"may have 1 to 200|vocabulary of 97"):
            embed(tokens)
    assert jax.numpy.isclose(np.linalg.norm(embed([9])), 1)
