"""Where memory and time of a plan go, as a PNG."""

from __future__ import annotations

import os

from zoo.plan.cycles import KINDS, PLACES
from zoo.plan.hardware import GiB
from zoo.plan.planner import Plan
from zoo.plan.report import verdict
from zoo.training.plots import figure_of, write

_COLOURS = (
    "#23395d", "#4c72a5", "#9db4d3", "#c9d6e6", "#e0a458", "#e6e6e6", "#8a9a5b", "#b9a7c7",
    "#d9c9a3",
)  # fmt: skip


def draw(plan: Plan, name: str, path: str | os.PathLike) -> None:
    """Bars: a chip's memory by what is in it, a run's time by what takes it, and, of a program that
    was compiled, its cores' time by parts of the model."""
    rows = 3 if plan.busy else 2
    figure, (above, below, *rest) = figure_of(8.0, 2.1 * rows, rows=rows)
    memory = plan.memory
    _bar(above, {
        "parameters": memory.parameters / GiB, "optimizer": memory.optimizer / GiB,
        "cache": memory.cache / GiB, "batch": memory.batch / GiB,
        "activations and temporaries": memory.temporaries / GiB,
        "left": max(memory.left, 0) / GiB,
    })  # fmt: skip
    above.axvline(memory.capacity / GiB, color="#d1495b", linewidth=2)
    above.set(xlabel="GiB per chip; the red line is what it has")
    above.set_title(f"{name} · {plan.work.mode} on {plan.topology} · {verdict(plan)}", fontsize=9)
    seconds = {
        "cores": plan.compute_seconds, "memory": plan.memory_seconds, "links": plan.link_seconds,
    }  # fmt: skip
    unit, scale = ("seconds", 1) if plan.seconds >= 1 else ("milliseconds", 1e3)
    _bar(below, {label: scale * value for label, value in seconds.items()})
    below.axvline(scale * plan.seconds, color="#d1495b", linewidth=2)
    below.set(xlabel=f"{unit} of a run, one after the other; the red line is the estimate")
    for axes in rest:
        busy = {place: sum(plan.busy.get((place, kind), 0.0) for kind in KINDS) for place in PLACES}
        busy["waiting for links"] = plan.waiting_seconds
        _bar(axes, {label: scale * value for label, value in busy.items()})
        axes.set(xlabel=f"{unit} of a run by the compiler's cycles")
    write(figure, path)


def _bar(axes, parts: dict[str, float]) -> None:
    start, least = 0.0, sum(parts.values()) / 1000
    for colour, (label, value) in zip(_COLOURS, parts.items(), strict=False):
        if value > least:
            axes.barh(0, value, left=start, color=colour, label=f"{label} {value:.3g}")
            start += value
    axes.set_yticks([])
    axes.legend(frameon=False, fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.35))
