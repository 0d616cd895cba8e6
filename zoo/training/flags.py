"""What `train.py` and `eval.py` share: command lines that are wrong end with a sentence."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import absl.logging
from absl import app

from zoo.training.settings import explain_override


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with a sentence instead of a traceback where `--config.` names no field.

    Log lines lose their prefix, and JAX does not tell which accelerators it did not find.
    """
    absl.logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError) as e:
        found = [explain_override(a) for a in argv if a.lstrip("-").startswith("config.")]
        fail("; ".join(filter(None, found)) or str(e.args[0]), status=2)


def fail(message: object, status: int = 1) -> NoReturn:
    """Prints why, and leaves."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
