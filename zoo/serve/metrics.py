"""Counts and times in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histograms' buckets."""

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What a server counts, by name and labels."""

    def __init__(self):
        self._help: dict[str, tuple[str, str]] = {}
        self._values: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._seen: dict[str, dict[Labels, list[float]]] = defaultdict(dict)

    def describe(self, name: str, kind: str, text: str) -> None:
        """Kind is counter, gauge or histogram."""
        self._help[name] = (kind, text)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        self._values[name][_sorted(labels)] += amount

    def set(self, name: str, value: float, **labels: str) -> None:
        self._values[name][_sorted(labels)] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Adds a time to a histogram: counts per bucket, then the sum."""
        counts = self._seen[name].setdefault(_sorted(labels), [0.0] * (len(SECONDS) + 2))
        counts[bisect.bisect_left(SECONDS, seconds)] += 1
        counts[-1] += seconds

    def value(self, name: str, **labels: str) -> float:
        return self._values[name][_sorted(labels)]

    def text(self) -> str:
        """All of it, a metric after the other."""
        lines = []
        for name, (kind, text) in self._help.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_shown(la)} {v:.15g}" for la, v in self._values[name].items()]
            for labels, counts in self._seen[name].items():
                lines += _histogram(name, labels, counts)
        return "\n".join(lines) + "\n"


def _histogram(name: str, labels: Labels, counts: list[float]) -> list[str]:
    lines, total = [], 0.0
    for bound, count in zip((*SECONDS, math.inf), counts[:-1], strict=True):
        total += count
        shown = "+Inf" if bound == math.inf else f"{bound:g}"
        lines.append(f"{name}_bucket{_shown((*labels, ('le', shown)))} {total:.15g}")
    return [*lines, f"{name}_sum{_shown(labels)} {counts[-1]:.15g}",
            f"{name}_count{_shown(labels)} {total:.15g}"]  # fmt: skip


def _sorted(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _shown(labels: Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    inside = ",".join(f'{name}="{escaped(value)}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""
