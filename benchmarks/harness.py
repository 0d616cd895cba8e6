"""Side-by-side timing: variants take turns in one process, so that foreign load hits them alike.

A round runs every variant once, in an order that rotates. The ratio of two variants is taken within
each round, and the median of these ratios is the result; times are medians too. `save` prints a
table and writes `results/NAME.json` with what the numbers depend on: machine, versions, commit, and
the load before and after.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rich
from rich.table import Table

from zoo.training.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
WIDE = 7
"""Columns beyond which a table is laid on its side."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def arguments(description: str | None, rounds: int, **choices: Any) -> argparse.Namespace:
    """Command line of a benchmark: --rounds, --out, and an option per name in `choices`."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds per case")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    for name, default in choices.items():
        if isinstance(default, list):
            parser.add_argument(f"--{name}", type=type(default[0]), nargs="*", default=default)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def settle_memory(reuse: int) -> dict[str, str]:
    """With `reuse`, has this process keep freed memory as `train.py` does; a line for `about`.

    Both sides share the process, and so what it does with memory.
    """
    if reuse and not keep_freed_memory():
        raise ValueError("this system's C library cannot keep freed memory: use --reuse 0")
    return {"freed memory": "kept, as train.py does" if reuse else "given back"}


def alternate(
    variants: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds per call of each variant, one value per round; a variant returns when it is done."""
    names = list(variants)
    for _ in range(warmup):
        for name in names:
            variants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(case: str, seconds: Mapping[str, list[float]], **facts: Any) -> dict[str, Any]:
    """One row of results: how many times faster "zoo" is than the other variant, and the times."""
    (other,) = (name for name in seconds if name != "zoo")
    low, middle, high = np.percentile(np.array(seconds[other]) / seconds["zoo"], (25, 50, 75))
    return {
        "case": case,
        "speed_ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "zoo_s": float(f"{np.median(seconds['zoo']):.5g}"),
        f"{other}_s": float(f"{np.median(seconds[other]):.5g}"),
        **facts,
        "seconds": {name: spread(values) for name, values in seconds.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and minimum of seconds."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    found = {"median": middle, "low": low, "high": high, "min": min(values)}
    return {key: float(f"{value:.5g}") for key, value in found.items()}


def save(
    name: str, out: Path, before: dict[str, Any], rows: list[dict[str, Any]], about: dict[str, Any]
) -> None:
    """Prints `rows` and writes them to out/NAME.json.

    Args:
        name: of the benchmark.
        out: folder.
        before: `machine()` from before the first measurement.
        rows: "case", then figures; what is nested goes into the file only.
        about: what else one needs to know to read the figures.
    """
    for table in _tables(name, rows):
        rich.print(table)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    body = {"name": name, "date": date, "about": about, "machine": before}
    body |= {"load_after": load(), "rows": rows}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n")


def load() -> list[float]:
    """Processes that wanted to run, averaged over 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load, Python, packages and commit."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "load": load(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "clean": _git("status", "--porcelain", "--untracked-files=no", "--", "zoo") == "",
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{fields.get('model name', platform.machine())}, family {family}, model {model}"


def _tables(name: str, rows: list[dict[str, Any]]) -> list[Table]:
    """One for each run of rows that have the same figures; many figures stand below each other."""
    plain = [{key: _show(v) for key, v in row.items() if _is_plain(v)} for row in rows]
    tables = []
    for columns, alike in itertools.groupby(plain, key=tuple):
        cells = [list(row.values()) for row in alike]
        if len(columns) > WIDE:
            columns, *cells = zip(columns, *cells, strict=True)
        table = Table(*columns, title=name)
        for row in cells:
            table.add_row(*row)
        tables.append(table)
    return tables


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict) and np.ndim(value) < 2


def _show(value: Any) -> str:
    if isinstance(value, list):
        return " - ".join(map(_show, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    found = subprocess.run(
        ["git", *command], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    return found.stdout.strip() if found.returncode == 0 else None
