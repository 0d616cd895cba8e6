"""What `train.py`, `eval.py` and `serve.py` share: how they begin, and how they end.

Command lines that are wrong end with a sentence.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import absl.logging
from absl import app, flags

from zoo.pipes import ends_with_reader
from zoo.training.settings import explain_override


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs a script, and leaves."""
    with ends_with_reader():
        app.run(main, flags_parser=parse_flags)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with a sentence where a flag or a field of `--config` is wrong.

    Log lines lose their prefix, and JAX does not tell which accelerators it did not find.
    """
    absl.logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as e:
        fail(_clearer(str(e)), status=2)
    except ValueError as e:
        if "is None" not in str(e):
            raise
        fail(_clearer(str(e)), status=2)
    except (AttributeError, KeyError) as e:
        found = [explain_override(a) for a in argv if a.lstrip("-").startswith("config.")]
        while isinstance(e.args[0], Exception):
            e = e.args[0]
        words = ". ".join(str(e.args[0]).splitlines())
        if "'get_config'" in words:
            fail("--config names a file that has no get_config(): see those in configs/", status=2)
        added = f"the config's file, where fields are added, has no {words}"
        fail("; ".join(filter(None, found)) or added, status=2)


def _clearer(message: str) -> str:
    """What flags say of a value, where ml_collections says it in terms of its own."""
    name = re.search(r"config\.[\w.]+", message)
    if missing := re.search(r'Override ([\w.]+) .* field "(\w+)" is None', message):
        path, field = missing.groups()
        before = path.split(".")[: path.split(".").index(field) + 1]
        return _clearer(f"config.{'.'.join(before)} <class 'NoneType'>")
    if "as a ConfigDict" in message:
        return f"{name[0]} is a group of fields: set them one by one, or all in the config's file"
    if "<class 'NoneType'>" in message:
        return f"{name[0]} is None: give it a value in the config's file first, which has a type"
    return message


def fail(message: object, status: int = 1) -> NoReturn:
    """Prints why, and leaves; that nobody reads is for `run` to see."""
    if isinstance(message, BrokenPipeError):
        raise message
    try:
        print(f"error: {message}", file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError:
        pass  # Of a terminal that is gone, or a full disk: the status tells.
    sys.exit(status)
