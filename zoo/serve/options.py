"""The flags of `zoo serve` and of `serve.py`, from one table: --prefix-mib in one, --prefix_mib in
the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any, NamedTuple

from zoo.serve.settings import Settings


class Option(NamedTuple):
    """A flag.

    Attributes:
        name: with underscores.
        kind: int, float, str, the values to choose from, or list for one that may be repeated.
        help: what it is.
        default: its value where it is not given.
    """

    name: str
    kind: type | tuple[str, ...]
    help: str
    default: Any = None


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
    _limit("queue", int, "requests that may wait for a slot"),
    _limit("timeout", float, "seconds that an answer may take"),
    _limit("body_mib", int, "MiB of a request at most"),
    _limit("embed_tokens", int, "of a text to embed; 0 leaves embeddings out"),
    Option("drain", int, "seconds that answers have left after SIGTERM", 30),
    Option("dtype", ("float32", "bfloat16"), "of the computation"),
    _limit("cache_dtype", ("float32", "bfloat16", "float8_e4m3fn", "int8"), "what the cache keeps"),
    _limit("ahead", int, "tokens to guess at a time with the model's own layer of prediction"),
    Option("quantize", ("int8", "int4", "fp8"),
           "round linear maps while loading (docs/quantised.md)"),
    Option("mesh", str, 'devices that a model is laid over, "tensor=8"; the first if unset'),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to a parser of the standard library."""
    for name, kind, said, default in OPTIONS:
        how: dict[str, Any] = {"type": kind}
        if kind is list:
            how = {"action": "append", "metavar": "NAME=DIR"}
        elif isinstance(kind, tuple):
            how = {"choices": kind}
        shown = f"{said} ({default})" if default not in (None, "") else said
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, help=shown, default=[] if kind is list else default, **how)


def define(flags: ModuleType) -> None:
    """Defines the flags with `absl.flags`."""
    for name, kind, said, default in OPTIONS:
        text = f"{said[0].upper()}{said[1:]}."
        if kind is list:
            flags.DEFINE_multi_string(name, [], text)
        elif isinstance(kind, tuple):
            flags.DEFINE_enum(name, default, list(kind), text)
        else:
            make = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
            make[kind](name, default, text)


def run(folder: str | None, said: Mapping[str, Any]) -> int:
    """Serves as the flags say until told to stop; returns the exit status.

    Raises:
        ValueError: a flag, a folder or a file is wrong, or a package is missing.
        OSError: the address is taken, or a file cannot be read.
    """
    try:
        from zoo.serve import command
    except ImportError as e:
        raise ValueError(f"{e}: pip install 'zoo-jax[serve]'") from e
    settings = Settings(
        keys=command.keys_of(said["keys"]),
        hosts=command.hosts_of(said["host"], said["hosts"]),
        **{
            name: said[name] for name in _DEFAULTS if name in said and name not in ("keys", "hosts")
        },
    )
    names = ("host", "port", "routes", "drain", "dtype", "mesh", "quantize")
    folders = command.named(folder, said["model"])
    return command.serve(folders, settings, **{name: said[name] for name in names})
