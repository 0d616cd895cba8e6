"""A plan in words and tables, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from zoo.describe import human
from zoo.pipes import Console
from zoo.plan.cycles import KINDS, PLACES
from zoo.plan.hardware import GiB
from zoo.plan.hlo import GROUPED, Collective
from zoo.plan.planner import Plan

ASSUMPTIONS = (
    "Products run at the data sheet's peak; cores wait for memory, which moves every tensor once "
    "per pass; links carry collectives meanwhile, in rings, at their full rate. docs/plan.md "
    "compares this with measured runs."
)
"""What `Plan.seconds` takes for granted."""
GUESSED = (
    " The compiler's cycles are what its cost model expects of the program that it made: nothing "
    "was measured. What runs beside them has none; kernels take their products at the peak."
)
"""What `Plan.busy` is."""


def show(plan: Plan, name: str, tokens: float | None = None) -> None:
    """Prints the plan; `tokens` is a budget to give chip-hours for."""
    Console().print(Group(*_parts(plan, name, tokens)))


def ranking(plans: Sequence[Plan], most: int = 10) -> None:
    """Prints plans, best first, one per line."""
    table = Table("mesh", "batch", "GiB left", "tokens/s per chip", "MFU", "by cycles")
    for plan in plans[:most]:
        cut = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1)
        speed, expected = plan.tokens_per_second / plan.topology.chips, plan.compiled_seconds
        kind = "gave up" if plan.how.startswith("compiled") else "arithmetic"
        table.add_row(
            cut or "one device", str(plan.work.batch), f"{plan.memory.left / GiB:.2f}",
            f"{speed:,.1f}", f"{plan.mfu(plan.seconds):.1%}",
            kind if expected is None else f"{plan.mfu(expected):.1%}",
        )  # fmt: skip
    Console().print(table)


def verdict(plan: Plan) -> str:
    """One line: it fits with so much left, or lacks so much per chip."""
    spare, of = abs(plan.memory.left) / GiB, plan.memory.capacity / GiB
    where = f"of {of:.1f} GiB on each {plan.topology.chip.name}"
    if plan.fits:
        return f"fits: {spare:.2f} GiB left {where}"
    return f"does not fit: {spare:.2f} GiB too much, {plan.memory.total / GiB:.2f} GiB {where}"


def _parts(plan: Plan, name: str, tokens: float | None) -> list:
    work, mesh = plan.work, {k: v for k, v in plan.mesh.items() if v > 1} or {"data": 1}
    cut = " x ".join(f"{axis}={size}" for axis, size in mesh.items())
    what = work.mode if work.lora is None else f"{work.mode} LoRA of rank {work.lora.rank}"
    what += "" if work.rounds_to is None else f" on {work.rounds_to}"
    title = (
        f"{name} · {what} · {_many(work.batch, 'row')} of {_many(work.length, 'token')} · "
        f"{plan.topology} ({_many(plan.topology.chips, 'chip')}) · {cut}"
    )
    style = "bold green" if plan.fits else "bold red"
    return [
        Text(title, style="bold"),
        Text(verdict(plan), style=style),
        Text(f"memory and counts: {plan.how}\n", style="dim"),
        _memory(plan),
        _counts(plan),
        *([_links(plan)] if plan.collectives else []),
        _time(plan, tokens),
        *([_busy(plan)] if plan.busy else []),
        *([Text(plan.advice, style="yellow")] if plan.advice else []),
        Text(ASSUMPTIONS + (GUESSED if plan.busy else ""), style="dim"),
    ]


def _memory(plan: Plan) -> Table:
    table = Table("per chip", "GiB", title="memory", title_justify="left")
    memory = plan.memory
    rows = {
        "parameters": memory.parameters, "optimizer": memory.optimizer, "cache": memory.cache,
        "batch": memory.batch, "activations and temporaries": memory.temporaries,
        "left": memory.left,
    }  # fmt: skip
    for label, value in rows.items():
        if value >= GiB / 2000 or label == "left":
            table.add_row(label, f"{value / GiB:.3f}")
    return table


def _counts(plan: Plan) -> Table:
    table = Table("all chips, one run", "operations", title="operations", title_justify="left")
    table.add_row("the model's mathematics", f"{plan.model_flops:.4g}")
    if plan.recomputed:
        table.add_row("recomputed (rematerialisation)", f"{plan.recomputed:.4g}")
    if plan.lost:
        table.add_row("lost to devices that wait, or repeat others", f"{plan.lost:.4g}")
    if plan.product_flops is not None:
        label = "products in XLA's program"
        if plan.mesh.get("expert", 1) > 1 and plan.kernels.keys() & set(GROUPED):
            label += " (experts' buffers full)"
        table.add_row(label, f"{plan.product_flops:.4g}")
    for kernel, calls in plan.kernels.items():
        table.add_row(f"kernel {kernel}, calls per device", str(calls))
    table.add_row("bytes to and from a chip's memory", f"{plan.traffic:.4g}")
    return table


def _links(plan: Plan) -> Table:
    table = Table(
        "collective", "over", "devices", "calls", "GB per device", "seconds",
        title="links", title_justify="left",
    )  # fmt: skip
    for one in sorted(_joined(plan.collectives), key=plan.seconds_of, reverse=True)[:12]:
        table.add_row(
            one.kind, " ".join(one.axes), str(one.size), str(one.calls), f"{one.bytes / 1e9:.3f}",
            f"{plan.seconds_of(one):.4f}",
        )  # fmt: skip
    return table


def _joined(collectives: Sequence[Collective]) -> list[Collective]:
    """Those of a kind over the same devices as one."""
    totals: dict[tuple, tuple[int, int]] = {}
    for one in collectives:
        key = one.kind, one.axes, one.size
        calls, moved = totals.get(key, (0, 0))
        totals[key] = calls + one.calls, moved + one.bytes
    return [Collective(*key, *total) for key, total in totals.items()]


def _time(plan: Plan, tokens: float | None) -> Table:
    """The estimate, and beside it what the compiler's cycles give, if it said them."""
    runs = [seconds for seconds in (plan.seconds, plan.compiled_seconds) if seconds is not None]
    heads = ("estimate", "by the compiler's cycles")[: len(runs)]
    table = Table("one run", *heads, title="time", title_justify="left")

    def row(label: str, *cells: str) -> None:
        table.add_row(label, *cells[: len(runs)])

    if plan.schedule is not None:
        stages, count, rounds = plan.schedule
        times = f"{_many(count, 'microbatch', 'es')}, {_many(rounds, 'round')}"
        way = f"{plan.schedule.bubble:.1%} ({times})"
        table.add_row(f"bubble of {stages} stages", way)
    links, waited = _seconds(plan.link_seconds), _seconds(plan.waiting_seconds)
    row("cores", _seconds(plan.compute_seconds), _seconds(sum(plan.busy.values())))
    row("memory", _seconds(plan.memory_seconds), "in those of cores")
    row("links", links, links if plan.waiting_seconds == 0 else f"{links}, {waited} waited for")
    row("together", *map(_seconds, runs))
    row("if all overlaps", _seconds(plan.least_seconds))
    row("if nothing does", _seconds(plan.most_seconds))
    speeds = [plan.work.tokens / seconds for seconds in runs]
    row("tokens/s", *(f"{speed:,.0f}" for speed in speeds))
    if plan.topology.chips > 1:
        row("tokens/s of a chip", *(f"{speed / plan.topology.chips:,.1f}" for speed in speeds))
    row("model flops utilisation", *(f"{plan.mfu(seconds):.1%}" for seconds in runs))
    if tokens is not None:
        hours = [plan.chip_hours(tokens, seconds) for seconds in runs]
        days = [found / plan.topology.chips / 24 for found in hours]
        row(f"{human(int(tokens))} tokens", *(f"{n:,.0f} chip-hours" for n in hours))
        row("on these chips", *(f"{n:,.1f} days" for n in days))
    return table


def _busy(plan: Plan) -> Table:
    total = sum(plan.busy.values())
    unit, scale = ("s", 1) if total >= 1 else ("ms", 1e3)
    title = "where cores' time goes, by the compiler's cycles"
    table = Table(f"{unit} per run", *KINDS, "share", title=title, title_justify="left")
    for place in PLACES:
        row = [plan.busy.get((place, kind), 0.0) for kind in KINDS]
        if sum(row) > total / 1000:
            cells = (f"{scale * value:.3f}" if value > total / 1e5 else "" for value in row)
            table.add_row(place, *cells, f"{sum(row) / total:.1%}")
    return table


def _many(count: int, name: str, plural: str = "s") -> str:
    return f"{count} {name}{plural if count != 1 else ''}"


def _seconds(value: float) -> str:
    if value == 0:
        return "none"
    return f"{value:.3f} s" if value >= 0.1 else f"{1e3 * value:.3f} ms"
