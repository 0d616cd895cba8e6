"""What `serve.py` and `zoo serve` share: models by name, keys, and the server until it is told to
stop."""

from __future__ import annotations

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

from zoo.serve.app import make_app
from zoo.serve.model import open_parts, start
from zoo.serve.routing import read_routes
from zoo.serve.settings import Settings
from zoo.sharding import make_mesh

KEYS = "ZOO_API_KEYS"
"""An environment variable: keys, divided by commas."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MOST_CONNECTIONS = 2048
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
        mesh: devices that each model is laid over, "tensor=4,expert=2"; by default the first.
        quantize: "int8", "int4" or "fp8": what linear maps are rounded to.

    Raises:
        ValueError: a folder, the routes or the settings are wrong.
        OSError: the address is taken.
    """
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    kind = jnp.dtype(dtype)
    devices = make_mesh(mesh) if mesh else None
    found = read_routes(routes, folders) if routes else {}
    listening = _listen(host, port)  # before the weights: a port that is taken ends here
    models = {}
    for name, path in folders.items():
        parts = open_parts(path, kind, devices, quantize)
        print(f"{name} is read; its programs compile", file=sys.stderr, flush=True)
        models[name] = start(name, parts, settings)
    if host not in LOOPBACK and not settings.keys:
        logging.warning("Everybody who reaches %s may use the models: there are no API keys", host)
    app = make_app(models, found, settings)
    config = uvicorn.Config(
        app, log_level="info", timeout_graceful_shutdown=drain, limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=2**16, server_header=False, ws="none", lifespan="on",
    )  # fmt: skip
    listening.listen(BACKLOG)  # whoever reads the address may call at once
    print(f"http://{_shown(host)}:{listening.getsockname()[1]}", flush=True)
    runner = _Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises what stopped it again at its end
    runner.run(sockets=[listening])
    return 1 if runner.failed else 0


class _Server(uvicorn.Server):
    """Ends too when no model can answer any more, for whoever restarts it.

    Attributes:
        failed: that is why.
    """

    failed = False

    async def on_tick(self, counter: int) -> bool:
        server = self.config.app.state.server
        self.failed = len(server.failures) == len(server.models)
        return await super().on_tick(counter) or self.failed


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
