"""A plan: memory, operations, traffic and time of one program on one slice, and a verdict."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from dataclasses import dataclass

from zoo import sharding
from zoo.config import Config
from zoo.plan import compiled, estimate, flops, kernels, links
from zoo.plan.compiled import CannotCompile
from zoo.plan.cycles import Parts
from zoo.plan.hardware import Topology
from zoo.plan.hlo import Collective, Counted
from zoo.plan.layout import Layout, Schedule
from zoo.plan.workload import Workload, device_bytes, program


@dataclass(frozen=True)
class Memory:
    """Bytes per chip. `temporaries` are activations, gradients, buffers and code.

    `total` is what the program needs at its peak; `capacity` is what the chip has.
    """

    parameters: int
    optimizer: int
    cache: int
    batch: int
    temporaries: int
    capacity: int

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.cache + self.batch + self.temporaries

    @property
    def left(self) -> int:
        """Negative is missing."""
        return self.capacity - self.total


@dataclass(frozen=True)
class Plan:
    """What is known of a program before it runs.

    Attributes:
        cfg: the model.
        work: the program's sizes.
        topology: the chips.
        mesh: sizes of the mesh's axes.
        across: over how many slices those go that go from slice to slice.
        how: where memory and counts are from, in words.
        memory: per chip.
        model_flops: that the mathematics needs, of all chips together.
        recomputed: that rematerialisation adds to them.
        lost: what chips could do while stages wait for each other, or all do the same.
        schedule: of the stages, where layers run in them.
        product_flops: in products of the compiled program, of all chips; None without one.
        kernels: calls of Pallas kernels per device, whose products XLA does not see.
        traffic: bytes that a chip moves to and from its memory, by arithmetic.
        collectives: per device.
        busy: seconds of a core by parts of the compiled program, as its compiler expects them, with
            what is known of kernels; empty without one.
    """

    cfg: Config
    work: Workload
    topology: Topology
    mesh: dict[str, int]
    across: dict[str, int]
    how: str
    memory: Memory
    model_flops: float
    recomputed: float
    lost: float
    schedule: Schedule | None
    product_flops: float | None
    kernels: dict[str, int]
    traffic: float
    collectives: tuple[Collective, ...]
    busy: Parts

    @property
    def fits(self) -> bool:
        return self.memory.left >= 0

    @property
    def compute_seconds(self) -> float:
        """At the peak of all chips, with recomputation and with what stages lose."""
        chips = self.topology.chips * self.topology.chip.flops
        return (self.model_flops + self.recomputed + self.lost) / chips

    @property
    def memory_seconds(self) -> float:
        return self.traffic / self.topology.chip.hbm

    @property
    def link_seconds(self) -> float:
        return sum(self.seconds_of(one) for one in self.collectives)

    @property
    def seconds(self) -> float:
        """The estimate: cores wait for memory, links work meanwhile."""
        return max(self.compute_seconds + self.memory_seconds, self.link_seconds)

    @property
    def least_seconds(self) -> float:
        """The roofline: everything overlaps."""
        return max(self.compute_seconds, self.memory_seconds, self.link_seconds)

    @property
    def most_seconds(self) -> float:
        """Nothing overlaps."""
        return self.compute_seconds + self.memory_seconds + self.link_seconds

    @property
    def waiting_seconds(self) -> float:
        """For collectives beside which the compiled program does nothing."""
        alone = (dataclasses.replace(one, bytes=one.alone) for one in self.collectives)
        return sum(map(self.seconds_of, alone))

    @property
    def compiled_seconds(self) -> float | None:
        """By the compiler's cycles: cores work or wait, links work meanwhile; None without them."""
        if not self.busy:
            return None
        return max(sum(self.busy.values()) + self.waiting_seconds, self.link_seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.work.tokens / self.seconds

    def mfu(self, seconds: float) -> float:
        """The share of the chips' peak that goes into what the mathematics needs."""
        return self.model_flops / seconds / (self.topology.chips * self.topology.chip.flops)

    def chip_hours(self, tokens: float, seconds: float) -> float:
        """For so many tokens, at so long a run."""
        return tokens / self.work.tokens * seconds * self.topology.chips / 3600

    def seconds_of(self, one: Collective) -> float:
        """How long a device's part of a collective keeps links busy: a slice's, then the network.

        Between slices each device of one exchanges its own part with its like in the others.
        """
        topology, cores = self.topology, self.topology.chip.cores
        exchange = one.kind in ("all-to-all", "ragged-all-to-all")
        slices = math.prod(self.across.get(axis, 1) for axis in one.axes)
        within = dataclasses.replace(one, size=max(1, one.size // slices))
        size = math.ceil(within.size / cores)
        if one.kind == "collective-permute" and topology.chip.is_tpu:
            size = min(size, 2)  # to a neighbour goes one link
        sent = within.sent * cores
        if exchange:  # links carry the rows of others, too
            sent *= topology.hops(size) / slices
        seconds = sent / topology.bandwidth(size)
        if slices > 1:
            part = one.bytes if exchange else math.ceil(one.bytes / within.size)
            between = dataclasses.replace(one, size=slices, bytes=part)
            seconds += between.sent * cores / topology.chip.network
        return seconds

    @property
    def advice(self) -> str | None:
        """What would make it faster, where something plainly would."""
        if self.work.mode != "decode":
            return None
        gathers = [one for one in self.collectives if one.kind == "all-gather"]
        seconds = sum(map(self.seconds_of, gathers))
        if seconds <= self.seconds / 2:
            return None
        axes = ", ".join(sorted({axis for one in gathers for axis in one.axes}))
        return (
            f"{1e3 * seconds:.1f} of {1e3 * self.seconds:.1f} ms gather weights over {axes}, for "
            "every token anew: cut them by tensor or expert, where they stay"
        )


def make_plan(
    cfg: Config,
    work: Workload,
    topology: Topology,
    mesh: str = "fsdp=-1",
    rules: str | sharding.Rules | None = None,
    compile: bool = True,
) -> Plan:
    """Plans one program; nothing is allocated.

    Args:
        cfg: the model.
        work: the program's sizes.
        topology: chips to run on.
        mesh: as for `zoo.make_mesh`; its sizes multiply to the JAX devices of the slice.
        rules: a table of `zoo.sharding.RULES` by name, one of yours, or None for the default.
        compile: ask TPU's compiler where it knows the slice; False is arithmetic alone.

    Raises:
        ValueError: a mesh or batch that does not divide, or sizes that the model cannot have.
    """
    sizes = sharding.mesh_sizes(mesh, topology.devices)
    rules = sharding.find_rules(rules)
    if work.length > cfg.max_length:
        raise ValueError(
            f"length={work.length} is beyond the model's max_length={cfg.max_length}: shorten it"
        )
    across = sharding.across_slices(mesh, topology.devices, topology.slices)
    spec = ",".join(f"{name}={size}" for name, size in sizes.items())
    shape = sharding.abstract_mesh(spec)
    sharding.check_mesh(shape, rules)
    parts = program(cfg, work, shape, rules).parts
    cores = topology.chip.cores
    held = [device_bytes(part) * cores for part in parts]
    gradients = held[1] // 2  # AdamW keeps two numbers for each
    layout = Layout(cfg, work, sizes, rules)
    found, how = _compiled(cfg, work, topology, mesh, rules) if compile else (None, "arithmetic")
    if found is None:
        params, cache = held[0] // cores, held[2] // cores
        guess = estimate.temporaries(layout, gradients // cores, cache, params)
        temporaries = int(guess) * cores
    else:
        temporaries = max(found.total * cores - sum(held), found.temporaries * cores)
    capacity = topology.chip.memory
    if found is not None and found.available is not None:
        capacity = found.available * cores
    counted = None if found is None else found.counted
    model, again = flops.passes(flops.forward_of(cfg, work), work)
    return Plan(
        cfg, work, topology, sizes, across, how,
        Memory(*held, temporaries, capacity),
        model, again, _lost(layout), layout.schedule,
        None if counted is None else counted.flops * topology.devices,
        {} if counted is None else counted.kernels,
        estimate.memory_traffic(layout, 3 * gradients // cores, held[2] // cores) * cores,
        _collectives(layout, counted, across, held[2] // cores),
        _busy(layout, counted, topology),
    )  # fmt: skip


def _compiled(cfg, work, topology, mesh, rules) -> tuple[compiled.Compiled | None, str]:
    """What the compiler says, and how the plan says where it is from."""
    try:
        devices = compiled.devices(topology)
    except CannotCompile as e:
        return None, f"arithmetic: {e}"
    found = compiled.compile_for(cfg, work, sharding.make_mesh(mesh, devices), rules)
    how = f"compiled by libtpu {importlib.metadata.version('libtpu')} in {found.seconds:.0f} s"
    if found.counted is None:
        how += ", which gave up for want of memory; collectives by arithmetic"
    return found, how


def _busy(layout: Layout, counted: Counted | None, topology: Topology) -> Parts:
    if counted is None or not counted.cycles:
        return {}
    found = kernels.seconds(counted, layout, topology)
    for part, cycles in counted.cycles.items():
        found[part] = found.get(part, 0.0) + cycles / topology.chip.clock
    return found


def _collectives(
    layout, counted, across: dict[str, int], cache_bytes: int = 0
) -> tuple[Collective, ...]:
    """As compiled; by arithmetic what is not, and what goes from slice to slice.

    For that, the compiler makes transfers between hosts, which do not say how much they move.
    """
    guessed = links.collectives(layout, cache_bytes)
    if counted is None:
        return tuple(guessed)
    inside = [one for one in counted.collectives if not across.keys() & set(one.axes)]
    return (*inside, *(one for one in guessed if across.keys() & set(one.axes)))


def _lost(layout: Layout) -> float:
    """Of layers in stages the bubble; of all others, what is done more than once."""
    cfg, work, staged = layout.cfg, layout.work, 0.0
    for stack in filter(layout.staged, cfg.stacks):
        staged += sum(flops.passes(flops.of_stack(cfg, stack, work.batch, work.length), work))
    bubble = 0.0 if layout.schedule is None else layout.schedule.bubble
    others = sum(flops.passes(flops.forward_of(cfg, work), work)) - staged
    return staged * bubble / (1 - bubble) + others * (layout.repeating - 1)
