"""Side-by-side timing: variants take turns in one process, so that foreign load hits them alike.

A round runs every variant once, in an order that rotates. The ratio of two variants is taken within
each round, and the median of these ratios is the result; times are medians too. `save` adds what the
numbers depend on (machine, versions, commit, load), prints a table and writes
`benchmarks/results/NAME.json`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
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

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def arguments(description: str | None, rounds: int, **choices: Any) -> argparse.Namespace:
    """Command line of a benchmark: --rounds, and an option per name in `choices` (its default)."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds per case")
    for name, default in choices.items():
        if isinstance(default, list):
            parser.add_argument(f"--{name}", type=type(default[0]), nargs="*", default=default)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


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


def compare(
    case: str, seconds: Mapping[str, list[float]], ours: str, reference: str, **facts: Any
) -> dict[str, Any]:
    """One row of results: how many times faster `ours` is than `reference`, and the times."""
    ratios = np.array(seconds[reference]) / np.array(seconds[ours])
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return {
        "case": case,
        "ours": ours,
        "reference": reference,
        "speed_ratio": round(middle, 3),
        "speed_ratio_quartiles": [round(low, 3), round(high, 3)],
        "seconds": {name: spread(values) for name, values in seconds.items()},
        **facts,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and minimum of seconds."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    found = {"median": middle, "low": low, "high": high, "min": min(values)}
    return {key: float(f"{value:.5g}") for key, value in found.items()}


class Report:
    """Collects rows, and notes the load of the machine before and after."""

    def __init__(self, name: str, title: str, rounds: int):
        self.name, self.title, self.rounds = name, title, rounds
        self.load = os.getloadavg()
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Takes a row and says so, since the next one may take minutes."""
        self.rows.append(row)
        rich.print(row["case"], row.get("speed_ratio", ""), {
            name: value["median"] for name, value in row.get("seconds", {}).items()
        })  # fmt: skip

    def save(self) -> Path:
        """Prints the table, writes the JSON file and returns its path."""
        rich.print(self._table())
        body = {
            "name": self.name,
            "title": self.title,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "rounds": self.rounds,
            "machine": machine(),
            "load_before": [round(x, 2) for x in self.load],
            "load_after": [round(x, 2) for x in os.getloadavg()],
            "rows": self.rows,
        }
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(body, indent=1) + "\n")
        return path

    def _table(self) -> Table:
        table = Table("case", "variant", "median", "quartiles", "ratio", title=self.title)
        for row in self.rows:
            for name, value in row["seconds"].items():
                ratio = ""
                if name == row.get("ours"):
                    low, high = row["speed_ratio_quartiles"]
                    ratio = (
                        f"{row['speed_ratio']:.2f}x of {row['reference']} ({low:.2f}-{high:.2f})"
                    )
                table.add_row(
                    row["case"], name, f"{value['median']:.4g} s",
                    f"{value['low']:.4g}-{value['high']:.4g}", ratio,
                )  # fmt: skip
        return table


def machine() -> dict[str, Any]:
    """Processor, cores, memory, Python, packages and commit."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "clean": _git("status", "--porcelain", "--untracked-files=no", "--", "zoo") == "",
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    known = [fields.get(k.ljust(9, "\t"), fields.get(k)) for k in ("model name",)]
    model = next((f for f in known if f), platform.processor())
    family, number = fields.get("cpu family"), fields.get("model\t")
    return f"{model.strip()} (family {family}, model {number})"


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
