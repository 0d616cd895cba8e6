"""The flags of `zoo eval` and of `eval.py --tasks`, from one table, and what both do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.options import DTYPE, MESH, QUANTIZE, RULES, Option
from zoo.runs import is_run

WHICH = Option("which", ("best", "latest"), "which checkpoint of a run", "latest")
SHARED = (
    WHICH,
    MESH,
    RULES,
    Option("out", str, "a JSON file to write"),
)
"""Those that have a meaning where text is measured, too."""
OPTIONS = (
    Option("tasks", str, "names of lm-evaluation-harness, with commas between"),
    Option("num_fewshot", int, "examples before each question"),
    Option("limit", int, "documents of a task at most"),
    Option("include_path", str, "a folder of further tasks, YAML files"),
    Option("apply_chat_template", bool, "ask as in a chat", False),
    Option("batch_size", int, "rows at a time", 8),
    Option("max_length", int, "tokens of a row at most; the model's if unset"),
    DTYPE,
    QUANTIZE,
    *SHARED,
)


def run(model: str, said: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of each task, as `zoo.inference.harness.evaluate` gives them.

    Args:
        model: a Hugging Face folder, a repo id of the Hub, or a run.
        said: values of `OPTIONS`, by name.

    Raises:
        ValueError: as `evaluate` and `check`; or there are no tasks, or several processes.
    """
    import jax
    import jax.numpy as jnp

    from zoo.inference import harness
    from zoo.sharding import make_mesh

    if not (tasks := [task.strip() for task in (said["tasks"] or "").split(",") if task.strip()]):
        raise ValueError(f"--tasks={said['tasks']} names no task: try --tasks=arc_easy,wikitext")
    check(model, said)
    if jax.process_count() > 1:
        raise ValueError(f"--tasks run in one process, and there are {jax.process_count()}")
    if said["rules"] is not None and said["mesh"] is None:
        raise ValueError(f"--rules={said['rules']} are for a mesh: say which by --mesh")
    kind = said["dtype"] or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    here = ("tasks", "dtype", "mesh", "out")
    return harness.evaluate(
        model,
        tasks,
        dtype=jnp.dtype(kind),
        mesh=None if said["mesh"] is None else make_mesh(said["mesh"]),
        **{option.name: said[option.name] for option in OPTIONS if option.name not in here},
    )


def check(model: str, said: Mapping[str, Any]) -> None:
    """Refuses flags that nothing would read, and a file that cannot be written in the end.

    Args:
        model: as `run` takes it.
        said: values of `OPTIONS`, by name; without "tasks" text is measured.

    Raises:
        ValueError: it names them.
    """
    others = [] if said["tasks"] else [option for option in OPTIONS if option not in SHARED]
    if given := [o.name for o in others if said[o.name] != o.default]:
        raise ValueError(f"--{', --'.join(given)}: that is for tasks, which --tasks names")
    if said["which"] != WHICH.default and not is_run(model):
        raise ValueError(
            f"--which={said['which']} would change nothing: {model} is no run, which has "
            "checkpoints to choose from; leave --which out"
        )
    if said["out"] is None:
        return
    out = Path(said["out"])
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"--out={out} cannot be written: name a file in a folder that exists")
