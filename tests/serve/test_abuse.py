"""Load, malice and accidents: the server answers, says why it does not, and forgets nothing."""

import concurrent.futures
import contextlib
import dataclasses
import gc
import json
import os
import random
import socket
import threading
import time
from pathlib import Path

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.conftest import LIMITS, gated, served
from tests.serve.test_api import HI, metric
from tests.waiting import LONG, until
from zoo.serve import fields
from zoo.serve.model import start
from zoo.serve.schema import check, parse

ASK = {"model": "tiny", "prompt": "a", "max_tokens": 4, "temperature": 0}


def idle(site, name="tiny") -> bool:
    """Waits until no slot is taken and nobody waits."""
    engine = site.models[name].runner.engine
    until(lambda: (engine.stats.waiting, engine.stats.active), lambda counts: not any(counts))
    return metric(site, f'zoo_active{{model="{name}"}}') == 0


def test_sixty_four_clients_at_once_get_what_each_would_alone(site, parts, greedy):
    prompts = [f"client {i}" * (1 + i % 5) for i in range(64)]
    want = [greedy(parts.tokenizer.encode(p).ids, 8) for p in prompts[:12]]
    client, barrier = site.client, threading.Barrier(64, timeout=LONG)

    def ask(prompt):
        barrier.wait()
        return client.completions.create(
            model="tiny", prompt=prompt, max_tokens=8, temperature=0, stream=True
        )

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        streams = list(pool.map(ask, prompts))
        texts = list(pool.map(lambda s: "".join(c.choices[0].text for c in s), streams))
    assert texts[:12] == want
    assert all(texts)
    assert idle(site)


def sent(site, body: dict, path="/v1/completions") -> socket.socket:
    """A connection on which a request has been written."""
    raw = json.dumps(body).encode()
    made = socket.create_connection(("127.0.0.1", site.port), timeout=LONG)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    made.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    return made


def test_clients_that_vanish_free_their_slots(site):
    """At any point: before the body is whole, while waiting, in the middle of a stream."""
    chance = random.Random(0)
    for i in range(24):
        body = {**ASK, "max_tokens": 200, "n": chance.randint(1, 4), "stream": bool(i % 4)}
        client = sent(site, {**body, "logit_bias": {"259": -100}})
        for _ in range(chance.randint(0, 3)):
            client.recv(chance.randint(1, 4000))
        if chance.random() < 0.5:  # a reset instead of an end
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    half = socket.create_connection(("127.0.0.1", site.port))
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    half.close()
    assert idle(site)
    assert site.ask("POST", "/v1/completions", ASK)[0] == 200


SCRAPS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
EXAMPLES = {
    "/v1/completions": {"model": "tiny", "prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"model": "tiny", "messages": HI, "max_tokens": 1},
    "/v1/embeddings": {"model": "tiny", "input": "a"},
    "/tokenize": {"model": "tiny", "prompt": "a"},
    "/detokenize": {"model": "tiny", "tokens": [1]},
}


def bodies(path: str):
    """Sound bodies with fields replaced, by sound values and by scraps."""
    names = list(fields.BODIES[path]["properties"])
    change = st.dictionaries(st.sampled_from(names) | st.text(max_size=5), SCRAPS, max_size=2)
    return change.map(lambda changed: {**EXAMPLES[path], **changed})


@settings(  # the same bodies in every run
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.data())
def test_no_body_makes_the_server_fail(site, data):
    path = data.draw(st.sampled_from(list(EXAMPLES)))
    raw = data.draw(bodies(path).map(lambda b: json.dumps(b).encode()) | st.binary(max_size=50))
    status, found = site.ask("POST", path, raw)
    assert status in (200, 400, 404), found
    if status != 200 and found:
        assert set(found["error"]) == {"message", "type", "param", "code"}


NESTED = b'{"model": "tiny", "prompt": "a", "metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001
UNFIT = {
    "enormous": (b'{"prompt": "' + b"a" * LIMITS.body_mib * 2**20 + b'"}', 413, "more than 1 MiB"),
    "nested": (NESTED, 400, "levels of lists|nested too deeply|not JSON"),
    "cut": (b'{"model": "tiny"', 400, "not JSON"),
    "not a number": (b'{"model": "tiny", "prompt": "a", "top_p": NaN}', 400, "not JSON"),
    "infinite": (b'{"model": "tiny", "prompt": "a", "top_p": 1e999}', 400, "top_p=inf"),
    "huge number": (b'{"seed": ' + b"9" * 10_000 + b"}", 400, "not JSON"),
    "not UTF-8": (b'{"model": "\xff"}', 400, "not JSON"),
    "too long for any slot": (
        b'{"model": "tiny", "prompt": "' + b"a" * 20_000 + b'"}',
        400,
        "20000 characters are more",
    ),
    "a list": (b"[]", 400, "must be an object"),
    "nothing": (b"", 400, "not JSON"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_bodies_that_are_none(site, kind):
    raw, status, says = UNFIT[kind]
    got, found = site.ask("POST", "/v1/completions", raw)
    assert got == status
    assert any(part in found["error"]["message"] for part in says.split("|"))


def test_a_large_body_holds_nobody_up(site):
    """The thread that all connections share leaves it to others."""
    clock = time.pthread_getcpuclockid(site.thread.ident)
    many = [{"role": "user", "content": ""}] * 20_000
    for path, body in (
        ("/v1/completions", {**ASK, "metadata": {str(i): [i] for i in range(50_000)}}),
        ("/v1/chat/completions", {"model": "tiny", "messages": many, "max_tokens": 1}),
    ):
        raw, began = json.dumps(body).encode(), time.thread_time()
        check(parse(raw), fields.BODIES[path])
        alone, before = time.thread_time() - began, time.clock_gettime(clock)
        assert site.ask("POST", path, raw)[0] in (200, 400)
        assert time.clock_gettime(clock) - before < alone / 2


@pytest.mark.parametrize("arguments", ["{", '{"a": NaN}', '{"a":' * 300 + "1" + "}" * 300,
                                       "[" * 100_000])  # fmt: skip
def test_arguments_of_calls_that_are_none(site, arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    said = [*HI, {"role": "assistant", "tool_calls": [call]}]
    body = {"model": "tiny", "messages": said, "max_tokens": 1}
    status, found = site.ask("POST", "/v1/chat/completions", body)
    field = "messages[1].tool_calls[0].function.arguments"
    assert (status, found["error"]["param"]) == (400, field)


def test_what_a_foreign_page_can_send_is_refused(site):
    plain = {"Content-Type": "text/plain"}
    assert site.ask("POST", "/v1/completions", ASK, **plain)[0] == 415
    rebound = {"Host": "evil.example"}
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/")):
        assert site.ask(method, path, ASK if method == "POST" else None, **rebound)[0] == 403
    for host in ("localhost:8000", "LocalHost", "192.168.1.7", "192.168.1.7:80", "[::1]:8000"):
        assert site.ask("GET", "/health", Host=host)[0] == 200
    for host in ("ev{il.example", 'ev"il', "evil@127.0.0.1", "127.0.0.1@evil", "[::1].evil",
                 "[::1", "127.0.0.1:evil", "\xe9vil.com", "127.0.0.1.e", ""):  # fmt: skip
        status, found = site.ask("GET", "/health", Host=host)
        assert (status, found["error"]["type"]) == (403, "permission_error"), host
    page, _ = site.raw("GET", "/")
    assert "access-control-allow-origin" not in page.headers
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_who_says_no_host_is_no_page(site):
    """Checks of health by HTTP/1.0 do not, and browsers always do."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=LONG) as made:
        made.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert made.recv(100).startswith(b"HTTP/1.1 200")


def test_keys_let_in_and_nothing_else_does(parts):
    limits = dataclasses.replace(LIMITS, keys=("first key", "sécond"), embed_tokens=0)
    with served({"tiny": start("tiny", parts, limits)}, limits) as site:
        for given_key in ("", "Bearer", "Bearer first", "Bearer first key2", "Basic first key"):
            status, found = site.ask("GET", "/v1/models", Authorization=given_key)
            assert (status, found["error"]["code"]) == (401, "invalid_api_key")
        assert site.ask("GET", "/v1/models", Authorization="Bearer first key")[0] == 200
        for path in ("/", "/health", "/openapi.json"):
            assert site.raw("GET", path)[0].status == 200
        assert site.ask("GET", "/metrics")[0] == 401
        with pytest.raises(openai.AuthenticationError):
            site.client.models.list()
        status, found = site.ask("POST", "/v1/embeddings", {"model": "tiny", "input": "a"},
                                 Authorization="bearer first key")  # fmt: skip
        assert (status, "without embeddings" in found["error"]["message"]) == (404, True)


@pytest.fixture
def held(parts):
    """A server whose engine a test can hold, with a queue of one."""
    with holding(parts) as found:
        yield found


@contextlib.contextmanager
def holding(parts, **limits):
    limits = dataclasses.replace(LIMITS, queue=1, embed_tokens=0, **limits)
    model = gated(parts, limits)
    with served({"tiny": model}, limits) as site:
        yield site, model.runner.engine
        model.runner.engine.gate.set()


def test_a_full_queue_says_when_to_come_back(held):
    site, engine = held
    engine.gate.clear()
    waiting = [sent(site, {**ASK, "stream": True}) for _ in range(5)]
    until(lambda: site.models["tiny"].runner.load, lambda load: load == 5)
    assert site.ask("GET", "/health")[0] == 200
    response, raw = site.raw("POST", "/v1/completions", ASK)
    assert (response.status, response.headers["retry-after"]) == (429, "1")
    assert json.loads(raw)["error"]["type"] == "rate_limit_error"
    engine.gate.set()
    for client in waiting:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    assert idle(site)
    assert site.ask("POST", "/v1/completions", {**ASK, "n": 5})[0] == 200
    status, found = site.ask("POST", "/v1/completions", {**ASK, "n": 6})
    assert (status, "more than the 5" in found["error"]["message"]) == (400, True)


def test_an_answer_that_takes_too_long_is_ended(parts):
    with holding(parts, timeout=0.2) as (site, engine):
        engine.gate.clear()
        status, found = site.ask("POST", "/v1/completions", ASK)
        assert (status, found["error"]["type"]) == (504, "timeout_error")
        engine.gate.set()
        assert idle(site)


def test_a_body_that_does_not_come_is_not_waited_for(parts):
    with holding(parts, body_timeout=0.2) as (site, _):
        for length, status in ((2**40, 413), (10, 408)):  # the first of them at once
            slow = site.connect()
            slow.putrequest("POST", "/v1/completions")
            slow.putheader("Content-Type", "application/json")
            slow.putheader("Content-Length", str(length))
            slow.endheaders(b"{")
            assert slow.getresponse().status == status
            slow.close()


def test_a_connection_on_which_no_request_begins_is_closed(parts):
    """One that says nothing, one that goes on for ever, and one that was answered; not one that
    waits for its answer."""
    with holding(parts, head_timeout=5.0) as (site, engine):
        engine.gate.clear()
        asked = sent(site, ASK)
        until(lambda: site.models["tiny"].runner.load, lambda load: load == 1)
        address, made = ("127.0.0.1", site.port), []
        line = b"GET /health HTTP/1.1\r\nHost: "
        for begun in (b"", line, line + b"localhost\r\n\r\n"):
            made.append(socket.create_connection(address, timeout=LONG))
            made[-1].sendall(begun)
        assert made[2].recv(1000).startswith(b"HTTP/1.1 200")
        made[2].sendall(b"GET /")

        def dribbled() -> bytes:
            """What came after one more letter; a server that has closed resets."""
            with contextlib.suppress(ConnectionError):
                made[1].sendall(b"a")
                made[1].settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    return made[1].recv(100)
                return b"open"
            return b""

        assert until(dribbled, lambda got: got == b"") == b""
        for one in (made[0], made[2]):
            with contextlib.suppress(ConnectionError):
                assert one.recv(100) == b""
        engine.gate.set()
        assert asked.recv(100).startswith(b"HTTP/1.1 200")
        for one in (*made, asked):
            one.close()


def test_a_server_that_stops_says_so_in_answers_that_are_not_whole(held):
    site, engine = held
    engine.left = 3
    stream = site.client.completions.create(**{**ASK, "max_tokens": 100}, stream=True)
    next(stream)
    until(engine.gate.is_set, lambda opened: not opened)
    assert site.ask("GET", "/health")[0] == 200
    site.server.ends = 0
    engine.gate.set()
    with pytest.raises(openai.APIError, match="the server stops before"):
        list(stream)
    status, found = site.ask("POST", "/v1/completions", ASK)
    assert (status, found["error"]["type"]) == (503, "server_error")
    assert idle(site)


def test_a_failing_engine_fails_its_requests_and_answers_the_next(held):
    site, engine = held
    engine.faults = 1
    status, found = site.ask("POST", "/v1/completions", ASK)
    assert (status, found["error"]["code"]) == (500, "engine_failed")
    assert site.ask("POST", "/v1/completions", ASK)[0] == 200
    assert metric(site, 'zoo_engine_failures_total{model="tiny"}') == 1
    engine.left = 3  # or all might be said before it fails
    stream = site.client.completions.create(**{**ASK, "max_tokens": 100}, stream=True)
    assert next(stream).choices[0].text is not None
    until(engine.gate.is_set, lambda opened: not opened)
    engine.faults = 1
    engine.gate.set()
    with pytest.raises(openai.APIError, match="device hiccup"):
        list(stream)
    assert idle(site)


def test_a_stream_has_what_was_said_before_its_form_gets_too_large(held):
    site, engine = held
    letter = site.models["tiny"].tokenizer.token_to_id("a")
    engine.left = 3
    stream = site.client.completions.create(
        **{**ASK, "max_tokens": 100}, stream=True, logit_bias={str(letter): 100, "259": -100},
        extra_body={"response_format": {"type": "regex", "pattern": "((a{0,99}){0,99}){0,99}"}},
    )  # fmt: skip
    chunks = [next(stream)]
    until(engine.gate.is_set, lambda opened: not opened)
    engine.gate.set()
    with pytest.raises(openai.APIError, match="make that simpler: lexer error"):
        chunks.extend(stream)
    said = "".join(chunk.choices[0].text for chunk in chunks)
    made = metric(site, 'zoo_generated_tokens_total{model="tiny"}')
    assert said == "a" * int(made) != ""
    assert idle(site)


def test_an_engine_that_is_gone_is_told_and_never_waited_for(held):
    site, engine = held
    engine._admit = lambda: 1 / 0  # no request is ever seated: nothing can recover
    assert site.ask("POST", "/v1/completions", ASK)[0] == 503
    assert site.ask("POST", "/v1/completions", ASK)[0] == 503
    status, found = site.ask("GET", "/health")
    assert (status, found["status"]) == (503, "failed")
    assert "ZeroDivisionError" in found["failed"]["tiny"]


def resident() -> float:
    """MiB of memory that this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_thousand_requests_leave_nothing_behind(site):
    connection = site.connect()

    def ask(i: int) -> None:
        body = {**ASK, "prompt": f"request {i}", "max_tokens": 1 + i % 3, "stream": i % 2 == 1}
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json"})  # fmt: skip
        response = connection.getresponse()
        assert response.read()
        assert response.status == 200

    for i in range(300):
        ask(i)
    before, threads = resident(), threading.active_count()
    for i in range(1000):
        ask(i)
    connection.close()
    assert idle(site)
    assert site.models["tiny"].runner.load == 0
    assert resident() - before < 32
    assert threading.active_count() <= threads + 4


def test_prompts_are_in_no_log(site, caplog):
    secret = "a word that nobody logs"
    body = {**ASK, "prompt": secret}
    for changed in ({}, {"temperature": -1}, {"model": secret}, {"stream": True}):
        site.ask("POST", "/v1/completions", {**body, **changed})
    template = {"model": "tiny", "messages": [{"role": "user", "content": secret}]}
    site.ask("POST", "/v1/chat/completions", {**template, "max_tokens": 1})
    assert secret not in caplog.text
