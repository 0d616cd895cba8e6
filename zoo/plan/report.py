"""A plan in words and tables, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from zoo.describe import human
from zoo.pipes import Console
from zoo.plan.hardware import GiB
from zoo.plan.hlo import Collective
from zoo.plan.planner import Plan

ASSUMPTIONS = (
    "Products run at the data sheet's peak; cores wait for memory, which moves every tensor once "
    "per pass; links carry collectives meanwhile, in rings, at their full rate. docs/plan.md "
    "compares this with measured runs."
)
"""What `Plan.seconds` takes for granted."""


def show(plan: Plan, name: str, tokens: float | None = None) -> None:
    """Prints the plan; `tokens` is a budget to give chip-hours for."""
    Console().print(Group(*_parts(plan, name, tokens)))


def ranking(plans: Sequence[Plan], most: int = 10) -> None:
    """Prints plans, best first, one per line."""
    table = Table("mesh", "batch", "GiB left", "tokens/s per chip", "MFU", "by")
    for plan in plans[:most]:
        cut = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1)
        speed = plan.tokens_per_second / plan.topology.chips
        table.add_row(
            cut or "one device", str(plan.work.batch), f"{plan.memory.left / GiB:.2f}",
            f"{speed:,.1f}", f"{plan.mfu(plan.seconds):.1%}", plan.how.split(" ")[0].rstrip(":"),
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
        f"{name} · {what} · {work.batch} rows of {work.length} tokens · {plan.topology} "
        f"({plan.topology.chips} chips) · {cut}"
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
        *([Text(plan.advice, style="yellow")] if plan.advice else []),
        Text(ASSUMPTIONS, style="dim"),
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
        if value or label == "left":
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
        table.add_row("products in XLA's program", f"{plan.product_flops:.4g}")
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
    table = Table("estimate", "", title="time", title_justify="left")
    if plan.schedule is not None:
        stages, count, rounds = plan.schedule
        times = f"{rounds} rounds" if rounds > 1 else "1 round"
        way = f"{plan.schedule.bubble:.1%} ({count} microbatches, {times})"
        table.add_row(f"bubble of {stages} stages", way)
    table.add_row("cores, at their peak", _seconds(plan.compute_seconds))
    table.add_row("memory", _seconds(plan.memory_seconds))
    table.add_row("links", _seconds(plan.link_seconds))
    least, most = _seconds(plan.least_seconds), _seconds(plan.most_seconds)
    bounds = f"({least} if all overlaps, {most} if nothing)"
    table.add_row("one run", f"{_seconds(plan.seconds)} {bounds}")
    per_chip = plan.tokens_per_second / plan.topology.chips
    table.add_row("tokens/s", f"{plan.tokens_per_second:,.0f} ({per_chip:,.1f} per chip)")
    table.add_row("model flops utilisation", f"{plan.mfu(plan.seconds):.1%}")
    if tokens is not None:
        hours = plan.chip_hours(tokens)
        days = hours / plan.topology.chips / 24
        table.add_row(f"{human(int(tokens))} tokens", f"{hours:,.0f} chip-hours, {days:,.1f} days")
    return table


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 0.1 else f"{1e3 * value:.3f} ms"
