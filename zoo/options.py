"""Flags from one table for `zoo`, where they are --batch-size, and for scripts: --batch_size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple


class Option(NamedTuple):
    """A flag.

    Attributes:
        name: with underscores.
        kind: int, float, str, bool, the values to choose from, or list for one that may be
            repeated.
        help: what it is.
        default: its value where it is not given.
    """

    name: str
    kind: type | tuple[str, ...]
    help: str
    default: Any = None


QUANTIZE = Option(
    "quantize", ("int8", "int4", "fp8"), "round linear maps while loading (docs/quantised.md)"
)
DTYPE = Option(
    "dtype", ("float32", "bfloat16"), "of the computation; float32 on CPU, bfloat16 elsewhere"
)
MESH = Option("mesh", str, 'devices to lay the model over, "fsdp=2,tensor=-1"; the first if unset')
RULES = Option("rules", str, "a table of zoo.sharding.RULES, instead of the default")
HOSTS = (
    Option(
        "coordinator", str,
        "address:port of process 0 where several work together, or 'auto' on Cloud TPU VMs",
    ),
    Option("processes", int, "how many, beside --coordinator=address:port"),
    Option("process", int, "which of them this one is, from 0"),
)  # fmt: skip
"""What `zoo.hosts.start` takes, in its order."""


def add_arguments(parser: argparse.ArgumentParser, options: Sequence[Option]) -> None:
    """Adds the flags to a parser of the standard library."""
    for name, kind, said, default in options:
        how: dict[str, Any] = {"type": kind, "default": default}
        if kind is list:
            how = {"action": "append", "default": []}
        elif kind is bool:
            how = {"action": "store_true"}
        elif isinstance(kind, tuple):
            how = {"choices": kind, "default": default}
        hidden = default is None or default is False or default == ""
        shown = said if hidden else f"{said} ({default})"
        parser.add_argument("--" + name.replace("_", "-"), help=shown, **how)


def define(flags: ModuleType, options: Sequence[Option]) -> None:
    """Defines the flags with `absl.flags`."""
    for name, kind, said, default in options:
        text = f"{said[0].upper()}{said[1:]}."
        if kind is list:
            flags.DEFINE_multi_string(name, [], text)
        elif isinstance(kind, tuple):
            flags.DEFINE_enum(name, default, list(kind), text)
        else:
            make = {
                int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string,
                bool: flags.DEFINE_boolean,
            }  # fmt: skip
            make[kind](name, default, text)
