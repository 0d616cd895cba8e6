"""What `serve.py` and `zoo serve` share: models by name, keys, and the server until it is told to
stop."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import uvicorn
from absl import logging

import zoo
from zoo import hosts
from zoo.hf.tokenizer import open_tokenizer
from zoo.inference.speculative import check_draft
from zoo.inference.together import Together
from zoo.serve.app import make_app
from zoo.serve.connections import configured
from zoo.serve.model import (
    Model,
    config_of,
    length_of,
    make_engine,
    open_parts,
    start,
    tokenizer_folder,
)
from zoo.serve.routing import read_routes
from zoo.serve.settings import Settings
from zoo.sharding import make_mesh

KEYS = "ZOO_API_KEYS"
"""An environment variable: keys, divided by commas."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
GRACE = 3
"""Seconds in which clients are told that the time of their answers is up."""
BACKLOG = 128
"""Connections that wait to be accepted."""


def named(folder: str | None, models: Sequence[str]) -> dict[str, str]:
    """Folders by the name that clients use: a lone folder goes by its own.

    Raises:
        ValueError: there is none, a name is there twice, or NAME=DIR has no name or folder.
    """
    pairs = [] if folder is None else [(Path(folder).resolve().name, folder)]
    for said in models:
        name, divider, path = said.partition("=")
        if not (name and divider and path):
            raise ValueError(f"--model={said} must be NAME=DIR")
        pairs.append((name, path))
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two models are called {twice[0]!r}: give each a name of its own")
    if not pairs:
        raise ValueError("no model is named: give a folder, or --model NAME=DIR")
    return dict(pairs)


def keys_of(file: str | None) -> tuple[str, ...]:
    """API keys: lines of a file and those of $ZOO_API_KEYS."""
    lines = Path(file).read_text().splitlines() if file else []
    return tuple(
        key.strip() for key in (*lines, *os.environ.get(KEYS, "").split(",")) if key.strip()
    )


def hosts_of(host: str, more: str) -> tuple[str, ...]:
    """The names that a server goes by: those of this machine, where it listens, and `more`."""
    said = filter(None, (name.strip() for name in more.split(",")))
    return (*LOOPBACK, *(() if host in ("0.0.0.0", "::") else (host,)), *said)


def serve(
    folders: Mapping[str, str],
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    routes: str | None = None,
    drain: int = 30,
    dtype: str | None = None,
    mesh: str | None = None,
    quantize: str | None = None,
    draft: str | None = None,
) -> int:
    """Serves until SIGTERM or Ctrl-C, then finishes what was begun; returns the exit status.

    Args:
        folders: by name; Hugging Face folders, repo ids of the Hub or runs of train.py.
        settings: limits.
        host: address to listen at; others than loopback are open to the network.
        port: to listen at; 0 takes one that is free and prints it.
        routes: a JSON file, see `zoo.serve.routing`.
        drain: seconds that answers have left after SIGTERM.
        dtype: of the computation; by default float32 on CPU and bfloat16 elsewhere.
        mesh: devices that each model is laid over, "tensor=4,expert=2"; by default the first. Of
            several processes, devices of all; the first of them listens.
        quantize: "int8", "int4" or "fp8": what linear maps are rounded to.
        draft: a folder, repo id or run of a small model, which guesses `settings.ahead` tokens.

    Raises:
        ValueError: a folder, the routes, the draft or the settings are wrong.
        OSError: the address is taken.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port={port} must be 0, for one that is free, or at most {2**16 - 1}")
    if drain < 0:
        raise ValueError(f"drain={drain} must be at least 0")
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    kind = jnp.dtype(dtype)
    if jax.process_count() > 1:
        settings = of_several(folders, settings, mesh)
    devices = make_mesh(mesh) if mesh else None
    found = read_routes(routes, folders) if routes else {}
    # Before the weights: a port that is taken ends here.
    listening = _listen(host, port) if hosts.is_first() else None
    check_ahead(folders, settings, draft)
    guesser = None if draft is None else open_parts(draft, kind, quantize=quantize)
    models = {}
    for name, path in folders.items():
        parts = dataclasses.replace(open_parts(path, kind, devices, quantize), draft=guesser)
        print(f"{name} is read; its programs compile", file=sys.stderr, flush=True)
        if listening is None:
            return follow(make_engine(parts, settings))
        models[name] = start(name, parts, settings)
    if host not in LOOPBACK and not settings.keys:
        logging.warning("Everybody who reaches %s may use the models: there are no API keys", host)
    app = make_app(models, found, settings)
    config = configured(app, settings, log_level="info", timeout_graceful_shutdown=drain + GRACE)
    listening.listen(BACKLOG)  # whoever reads the address may call at once
    print(f"http://{_shown(host)}:{listening.getsockname()[1]}", flush=True)
    runner = _Server(config, drain)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises what stopped it again at its end
    runner.run(sockets=[listening])
    for name, why in app.state.server.failures.items() if runner.failed else ():
        print(f"{name} cannot answer any more: {why}", file=sys.stderr)
    if not runner.failed:
        for engine in _together(models):
            engine.close()
    return 1 if runner.failed else 0


def of_several(folders: Mapping[str, str], settings: Settings, mesh: str | None) -> Settings:
    """The settings of a model that several processes serve, which have no embeddings.

    Raises:
        ValueError: there are several models, or no mesh.
    """
    if len(folders) > 1:
        raise ValueError(
            f"{jax.process_count()} processes serve one model together, and not {len(folders)}: "
            "start some for each model"
        )
    if mesh is None:
        raise ValueError(
            f"{jax.process_count()} processes serve a model on the devices of all: lay it over "
            "them by --mesh, such as --mesh=tensor=-1"
        )
    if settings.embed_tokens:
        logging.info("Embeddings are left out, as several processes serve the model")
    return dataclasses.replace(settings, embed_tokens=0)


def follow(engine: Together) -> int:
    """Does what the first process does, until it is told to stop or this one is."""
    engine.warm()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: engine.ask_to_stop())
    engine.follow()
    return 0


def _together(models: Mapping[str, Model]) -> list[Together]:
    engines = [model.runner.engine for model in models.values()]
    return [engine for engine in engines if isinstance(engine, Together)]


def check_ahead(folders: Mapping[str, str], settings: Settings, draft: str | None) -> None:
    """Refuses what cannot guess ahead; reads configs and tokenizers, no weights.

    Raises:
        ValueError: it names the flags and the model.
    """
    if not settings.ahead:
        if draft is not None:
            raise ValueError(f"--draft={draft} guesses nothing: say how many tokens by --ahead")
        return
    flags = f"--ahead={settings.ahead}" + ("" if draft is None else f" --draft={draft}")
    guesser = None if draft is None else (zoo.Decoder(config_of(draft)), {})
    for name, path in folders.items():
        model = zoo.Decoder(config_of(path))
        try:
            check_draft(model, guesser, length_of(model.cfg, settings))
        except ValueError as e:
            raise ValueError(f"{flags}: {name} cannot use it: {e}") from e
        if draft is not None and _vocabulary(path) != _vocabulary(draft):
            raise ValueError(f"{flags}: {name} has another tokenizer: take a model of its family")


def _vocabulary(path: str) -> dict[str, int]:
    """Ids of the tokens but for added ones, in which models of one family may differ."""
    return open_tokenizer(tokenizer_folder(path)).get_vocab(with_added_tokens=False)


class _Server(uvicorn.Server):
    """Ends too when no model can answer any more, for whoever restarts it; or if another of its
    processes was told to.

    Attributes:
        failed: that is why.
    """

    def __init__(self, config: uvicorn.Config, drain: float):
        """Answers have `drain` seconds left when it ends."""
        super().__init__(config)
        self.failed, self._drain = False, drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ends = asyncio.get_running_loop().time() + self._drain
        self.config.app.state.server.ends = ends
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        server = self.config.app.state.server
        self.failed = len(server.failures) == len(server.models)
        told = any(engine.stopping for engine in _together(server.models))
        return await super().on_tick(counter) or self.failed or told


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as e:
        made.close()
        raise OSError(f"cannot listen at {host}:{port}: {e.strerror}") from e
    return made


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
