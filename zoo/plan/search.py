"""The best meshes and batches for a model on a slice: arithmetic on many, the compiler on few."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from zoo import sharding
from zoo.config import Config, MoE
from zoo.mesh import AXES
from zoo.plan.hardware import Topology
from zoo.plan.planner import Plan, make_plan
from zoo.plan.workload import Workload

TOO_MANY = 4096
"""Rows of a batch that search goes up to, per chip."""

MOST_TENSOR = 16
"""Devices that share a layer's products: more spend their time on sums of activations."""

LEAST_SHARE = 4096
"""Tokens of a row that a device has at least, where several share it (`context`)."""


def search(
    cfg: Config,
    work: Workload,
    topology: Topology,
    rules: str | sharding.Rules | None = None,
    compile_best: int = 3,
) -> list[Plan]:
    """Plans ranked: those that fit first, by tokens per second, then those that lack least.

    Every way to cut the slice's devices into data, fsdp, tensor and expert axes is tried, and in
    training also into stages, which go by `work.microbatches` and `work.rounds`, or long rows into
    context; with batches that double from the smallest one that divides, until the memory is full.
    In training, `work.batch` is the batch that the learning rate was chosen for, and is kept.

    Args:
        cfg: the model.
        work: the program; its batch is a start for serving.
        topology: chips to run on.
        rules: as for `make_plan`.
        compile_best: of those that fit by arithmetic, so many are compiled, and ranked first.

    Raises:
        ValueError: no mesh divides the model and the batch.
    """
    length = work.length if work.mode == "train" else None
    plans = [
        plan for mesh in meshes(cfg, topology.devices, length)
        if (plan := _best_batch(cfg, work, topology, mesh, rules)) is not None
    ]  # fmt: skip
    if not plans:
        raise ValueError(
            f"no mesh of {topology.devices} devices divides the model and a batch of {work.batch}: "
            "choose a batch that is a multiple of the devices, or say --mesh to see what does not"
        )
    plans.sort(key=_rank)
    best = [
        make_plan(cfg, plan.work, topology, spec(plan.mesh), rules) for plan in plans[:compile_best]
    ]
    return _ordered(best, plans[compile_best:])


def _ordered(compiled: list[Plan], guessed: list[Plan]) -> list[Plan]:
    """Those first that fit as the compiler says; what it found too large goes among the others."""
    fitting = [plan for plan in compiled if plan.fits]
    others = [plan for plan in compiled if not plan.fits] + guessed
    return sorted(fitting, key=_rank) + sorted(others, key=_rank)


def spec(mesh: dict[str, int]) -> str:
    """{"fsdp": 8, "expert": 1} -> "fsdp=8"."""
    return ",".join(f"{name}={size}" for name, size in mesh.items() if size > 1)


def meshes(cfg: Config, devices: int, length: int | None = None) -> Iterator[str]:
    """Every cut of the devices that the model divides by: experts only where there are.

    Args:
        cfg: the model.
        devices: of the slice.
        length: tokens of a training step's rows, which alone stages and context are for.
    """
    experts = math.gcd(*(la.ffn.experts for la in cfg.layers if isinstance(la.ffn, MoE)))
    whole = _divisors(devices)
    for stage, context in _stages_or_context(cfg, whole, length):
        for tensor in (n for n in whole if n <= MOST_TENSOR):
            for expert in (n for n in whole if n == 1 or (experts and experts % n == 0)):
                for data in whole:
                    size = stage * context * tensor * expert * data
                    if devices % size == 0:
                        sizes = data, devices // size, expert, tensor, context, stage
                        yield ",".join(f"{n}={k}" for n, k in zip(AXES, sizes, strict=True))


def _stages_or_context(cfg: Config, sizes: list[int], length: int | None) -> Iterator[tuple]:
    """As many stages as cut the layers of a stack, or devices as have enough of a row each; never
    both, since stages cannot share rows."""
    yield 1, 1
    for n in sizes[1:] if length is not None else ():
        if any(stack.repeats % n == 0 for stack in cfg.stacks):
            yield n, 1
        if length >= n * LEAST_SHARE and length % (2 * n) == 0:
            yield 1, n


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _best_batch(cfg, work: Workload, topology, mesh: str, rules) -> Plan | None:
    """The fastest plan of a mesh that fits, or the smallest where none does, or None."""
    best, batch = None, work.batch
    while batch <= TOO_MANY * topology.chips:
        tried = dataclasses.replace(work, batch=batch)
        try:
            plan = make_plan(cfg, tried, topology, mesh, rules, compile=False)
        except ValueError:  # it does not divide
            return best
        if best is None or _rank(plan) < _rank(best):
            best = plan
        if not plan.fits or work.mode == "train":
            return best
        batch *= 2
    return best


def _rank(plan: Plan) -> tuple[bool, float]:
    return (False, -plan.tokens_per_second) if plan.fits else (True, -plan.memory.left)
