"""Tiny models of every family: keyword arguments of transformers' config classes, by name.

Every size differs from the others where it can, so that a swapped axis cannot go unseen. Each
module of this package has

- `CASES`: name -> (prefix of transformers' classes, arguments of its config), compared live;
- `GOLDEN`: those that have committed files (`tests/make_golden.py`) -> how these are stored:
  dtype, and max_shard_size for several files;
- `PUBLISHED`: preset -> parameters in billions, all and those that a token uses (None where that is
  not published), with the source in a comment.
"""

from __future__ import annotations

import importlib
import pkgutil

CASES: dict[str, tuple[str, dict]] = {}
GOLDEN: dict[str, dict] = {}
PUBLISHED: dict[str, tuple[float, float | None]] = {}

for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    CASES |= getattr(_module, "CASES", {})
    GOLDEN |= getattr(_module, "GOLDEN", {})
    PUBLISHED |= getattr(_module, "PUBLISHED", {})
