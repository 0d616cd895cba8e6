"""A tiny model behind a real port of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest
import uvicorn

import zoo
from tests.examples import CONFIGS, random_params
from tests.inference.test_talk import TEMPLATE, byte_level
from tests.waiting import LONG
from zoo.hf.chat import open_chat
from zoo.inference.engine import Engine
from zoo.serve.app import make_app
from zoo.serve.connections import configured
from zoo.serve.model import Model, Parts, start
from zoo.serve.server import Server
from zoo.serve.settings import Settings

LENGTH = 256
LIMITS = Settings(slots=4, length=LENGTH, queue=96, prefix_mib=0, embed_tokens=32, body_mib=1)


@dataclasses.dataclass(repr=False)
class Site:
    """A server at work: its address, its models, the thread of its loop, and ways to ask it."""

    port: int
    models: dict[str, Model]
    server: Server | None = None
    thread: threading.Thread | None = None

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and body of a request; a body that is no bytes is sent as JSON."""
        response, raw = self.raw(method, path, body, **headers)
        kind = response.headers["content-type"] or ""
        return response.status, json.loads(raw) if kind == "application/json" else raw.decode()

    def raw(self, method: str, path: str, body: Any = None, **headers: str):
        said = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect()
        try:
            said_headers = {"Content-Type": "application/json", **headers}
            connection.request(method, path, said, said_headers)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()


class Gated(Engine):
    """An engine that a test can hold between steps, let fail, and let say what it wants.

    Attributes:
        gate: open while it is set.
        left: steps after which it closes by itself; None is never.
        faults: steps that will raise.
        script: tokens of the next texts; if there are none, texts are the model's.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.gate = threading.Event()
        self.gate.set()
        self.faults = 0
        self.left: int | None = None
        self.script: Sequence[int] = ()

    def step(self) -> bool:
        self.gate.wait()
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.left = None
                self.gate.clear()
        return super().step()

    def _decode(self) -> bool:
        if self.faults and any(self._seats):
            self.faults -= 1
            raise RuntimeError("device hiccup")
        return super()._decode()

    def _say(self, seat, token, scores) -> None:
        super()._say(seat, self.script[seat.made] if self.script else token, scores)


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Parts:
    """A model of 260 tokens with a chat template; the last token ends an answer."""
    folder = tmp_path_factory.mktemp("served")
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 259}))
    model = zoo.Decoder(dataclasses.replace(CONFIGS["dense"], vocab_size=260, max_length=512))
    chat = open_chat(folder)
    return Parts(model, random_params(model), chat.tokenizer, chat, (259,))


@contextlib.contextmanager
def served(models: dict[str, Model], settings: Settings = LIMITS, routes=()) -> Iterator[Site]:
    """A server of these models at a free port."""
    app = make_app(models, dict(routes), settings)
    server = uvicorn.Server(configured(app, settings, port=0, log_level="warning"))
    began = threading.Event()
    begin = server.startup

    async def startup(*args, **kwargs):
        await begin(*args, **kwargs)
        began.set()

    server.startup = startup
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert began.wait(LONG), "the server does not begin"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Site(port, models, app.state.server, thread)
    finally:
        server.should_exit = True
        thread.join(LONG)
    assert not thread.is_alive(), "the server does not end"


def gated(parts: Parts, settings: Settings, name: str = "tiny") -> Model:
    """A model whose engine is a `Gated` one."""
    engine = Gated(parts.decoder, parts.params, slots=settings.slots, length=LENGTH)
    return start(name, parts, settings, engine)


@pytest.fixture(scope="session")
def site(parts) -> Iterator[Site]:
    """A server of one model called tiny."""
    with served({"tiny": start("tiny", parts, LIMITS)}) as made:
        yield made


@pytest.fixture(scope="session")
def greedy(parts):
    """The text that `zoo.generate` makes of some token ids; 20 tokens of it at most.

    It makes as many for every prompt, so that few programs are compiled.
    """

    def make(prompt: list[int], count: int) -> str:
        assert count <= 20
        made = zoo.generate(parts.decoder, parts.params, [prompt], 20, eos=parts.eos)[0]
        return parts.tokenizer.decode([t for t in made[:count] if t not in parts.eos])

    return make
