"""The flags of `zoo serve` and of `serve.py`, from one table, and what both do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any

from zoo.options import DTYPE, HOSTS, MESH, QUANTIZE, Option
from zoo.serve.settings import Settings

_DEFAULTS = {field.name: field.default for field in fields(Settings)}


def _limit(name: str, kind: type | tuple[str, ...], help: str) -> Option:
    """A field of `Settings`."""
    return Option(name, kind, help, _DEFAULTS[name])


OPTIONS = (
    Option("model", list, "NAME=DIR; may be repeated"),
    Option("routes", str, "a JSON file of names that stand for several models"),
    Option("host", str, "where to listen; loopback alone by default", "127.0.0.1"),
    Option("port", int, "0 takes one that is free", 8000),
    Option("hosts", str, 'names that clients call it by, with commas between; "*" is any', ""),
    Option("keys", str, "a file of API keys, a line each; also $ZOO_API_KEYS"),
    _limit("slots", int, "texts that a model makes at a time"),
    _limit("length", int, "tokens of a text at most; the model's, or 4096 if that is more"),
    _limit("prefix_mib", int, "MiB of memory for what prompts begin with: it is read once"),
    _limit("cache_mib", int, "MiB of memory for all tokens; what the slots need at most if unset"),
    _limit("queue", int, "requests that may wait for a slot"),
    _limit("timeout", float, "seconds that an answer may take"),
    _limit("body_mib", int, "MiB of a request at most"),
    _limit("embed_tokens", int, "of a text to embed; 0 leaves embeddings out"),
    Option("drain", int, "seconds that answers have left after SIGTERM", 30),
    DTYPE,
    _limit("cache_dtype", ("float32", "bfloat16", "float8_e4m3fn", "int8"), "what the cache keeps"),
    _limit("ahead", int, "tokens to guess at a time, by --draft or the model's own layer for it"),
    Option("draft", str, "a small model of the same vocabulary, which guesses --ahead tokens"),
    QUANTIZE,
    MESH,
    *HOSTS,
)  # fmt: skip


def run(folder: str | None, said: Mapping[str, Any]) -> int:
    """Serves as the flags say until told to stop; returns the exit status.

    One of several processes ends with that status, and at once if it is not 0.

    Raises:
        ValueError: a flag, a folder or a file is wrong, or a package is missing.
        OSError: the address is taken, or a file cannot be read.
    """
    import jax

    from zoo import hosts

    try:
        from zoo.serve import command
    except ImportError as e:
        raise ValueError(f"{e}: pip install 'zoo-jax[serve]'") from e
    with hosts.one_fate():
        try:
            _join(said)
            status = _serve(command, folder, said)
        except (ValueError, OSError) as e:
            if jax.process_count() == 1:
                raise
            print(f"error: {e}", file=sys.stderr)
            status = 2
        if status and jax.process_count() > 1:
            sys.exit(status)
    return status


def _join(said: Mapping[str, Any]) -> None:
    from zoo import hosts

    try:
        hosts.start(*(said[option.name] for option in HOSTS))
    except RuntimeError as e:
        raise ValueError(f"the other processes did not come: {e}") from e


def _serve(command: ModuleType, folder: str | None, said: Mapping[str, Any]) -> int:
    settings = Settings(
        keys=command.keys_of(said["keys"]),
        hosts=command.hosts_of(said["host"], said["hosts"]),
        **{
            name: said[name] for name in _DEFAULTS if name in said and name not in ("keys", "hosts")
        },
    )
    names = ("host", "port", "routes", "drain", "dtype", "mesh", "quantize", "draft")
    folders = command.named(folder, said["model"])
    return command.serve(folders, settings, **{name: said[name] for name in names})
