"""What a model will need and do on a slice of accelerators, before any is rented.

    plan = make_plan(zoo.config("llama-3.1-8b"), Workload("train", 32, 4096), parse("v5e:4x4"))
    plan.fits, plan.memory.left, plan.tokens_per_second

`hardware` has the chips, `workload` the programs, `compiled` asks TPU's compiler, `hlo` reads what
it made, `layout`, `estimate` and `links` do the same by arithmetic, `search` ranks meshes, and
`report` prints.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "CHIPS": "hardware", "Chip": "hardware", "Topology": "hardware", "parse": "hardware",
    "Memory": "planner", "Plan": "planner", "make_plan": "planner", "Workload": "workload",
}  # fmt: skip

__all__ = ["CHIPS", "Chip", "Memory", "Plan", "Topology", "Workload", "make_plan", "parse"]


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: the command line needs none of them to parse."""
    if name not in _HOME:
        raise AttributeError(f"module 'zoo.plan' has no attribute {name!r}")
    return getattr(importlib.import_module(f"zoo.plan.{_HOME[name]}"), name)
