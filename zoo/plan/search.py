"""The best meshes and batches for a model on a slice: arithmetic on many, the compiler on few."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from zoo import sharding
from zoo.config import Config, MoE
from zoo.plan.hardware import Topology
from zoo.plan.planner import Plan, make_plan
from zoo.plan.workload import Workload

TOO_MANY = 4096
"""Rows of a batch that search goes up to, per chip."""


def search(
    cfg: Config,
    work: Workload,
    topology: Topology,
    rules: str | sharding.Rules | None = None,
    compile_best: int = 3,
) -> list[Plan]:
    """Plans ranked: those that fit first, by tokens per second, then those that lack least.

    Every way to cut the slice's devices into data, fsdp, tensor and expert axes is tried, with
    batches that double from the smallest one that divides, until the memory is full. In training,
    `work.batch` is the batch that the learning rate was chosen for, and is kept.

    Args:
        cfg: the model.
        work: the program; its batch is a start for serving.
        topology: chips to run on.
        rules: as for `make_plan`.
        compile_best: of those that fit by arithmetic, so many are compiled, and ranked first.

    Raises:
        ValueError: no mesh divides the model and the batch.
    """
    plans = [
        plan for mesh in meshes(cfg, topology.devices)
        if (plan := _best_batch(cfg, work, topology, mesh, rules)) is not None
    ]  # fmt: skip
    if not plans:
        raise ValueError(
            f"no mesh of {topology.devices} devices divides the model and a batch of {work.batch}: "
            "choose a batch that is a multiple of the devices"
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


def meshes(cfg: Config, devices: int) -> Iterator[str]:
    """Every cut of the devices; experts only where there are, and no more than there are."""
    counts = [la.ffn.experts for la in cfg.layers if isinstance(la.ffn, MoE)]
    for tensor in (1, 2, 4, 8, 16):
        for expert in _powers(min(counts, default=1)):
            for data in _powers(devices):
                size, rest = data * expert * tensor, devices % (data * expert * tensor)
                if rest == 0 and size <= devices:
                    yield f"data={data},fsdp={devices // size},expert={expert},tensor={tensor}"


def _powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if 2**i <= most]


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
