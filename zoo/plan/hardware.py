"""Accelerators as data: what a chip holds, computes and moves, and how chips are joined.

Bandwidths are bytes per second in one direction, memories are bytes, all per chip.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

GB, GiB = 10**9, 2**30


@dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
        name: as in a topology, "v5p" or "h100".
        memory: bytes of HBM.
        flops: dense bfloat16 operations per second (float16 on T4, which has no bfloat16).
        hbm: bytes per second between memory and cores.
        link: bytes per second of one link to a neighbour (TPU), or of all a GPU's links into its
            node.
        network: bytes per second of one chip's share of its host's network.
        source: where the figures are from.
        dims: axes of the torus that links make; 0 for GPUs.
        ring: chips of an axis from which on its links close to a ring.
        cores: JAX devices per chip, which share its memory.
        clock: cycles per second of the compiler's estimates; 0 where it makes none.
        node: chips per host that links join; all of a TPU slice.
    """

    name: str
    memory: int
    flops: float
    hbm: float
    link: float
    network: float
    source: str
    dims: int = 0
    ring: int = 1
    cores: int = 1
    node: int = 8
    clock: float = 0.0

    @property
    def is_tpu(self) -> bool:
        return self.dims > 0


_TPU = "https://docs.cloud.google.com/tpu/docs/"
_DATASHEET = "https://www.nvidia.com/en-us/data-center/"

CHIPS = {
    chip.name: chip
    for chip in (
        # ICI figures are of all links of a chip, both directions: divided by links and by two.
        Chip("v4", 32 * GiB, 275e12, 1228e9, 50e9, 3.125e9, _TPU + "v4", 3, 4, node=4),
        Chip("v5e", 16 * GiB, 197e12, 819e9, 50e9, 3.125e9, _TPU + "v5e", 2, 16, 1, 8, 1.5e9),
        Chip("v5p", 95 * GiB, 459e12, 2765e9, 100e9, 6.25e9, _TPU + "v5p", 3, 4, 1, 4, 1.75e9),
        Chip("v6e", 32 * GiB, 918e12, 1638e9, 100e9, 12.5e9, _TPU + "v6e", 2, 16, 1, 8, 1.75e9),
        Chip("tpu7x", 192 * GiB, 2307e12, 7380e9, 100e9, 12.5e9, _TPU + "tpu7x", 3, 4, 2, 4, 2.2e9),
        Chip("h100", 80 * GB, 989e12, 3350e9, 450e9, 50e9, _DATASHEET + "h100/"),
        Chip("h200", 141 * GB, 989e12, 4800e9, 450e9, 50e9, _DATASHEET + "h200/"),
        Chip("a100", 80 * GB, 312e12, 2039e9, 300e9, 25e9, _DATASHEET + "a100/"),
        Chip("t4", 16 * GB, 65e12, 320e9, 16e9, 3.125e9, _DATASHEET + "tesla-t4/", node=4),
    )
}
"""Data sheets promise this. GPUs are SXM ones on NVLink, each with a network port of its own of 400
(H100, H200) or 200 Gb/s (A100); T4s are on PCIe.

Clocks are not in them: they follow from operations per second and what matrix units do in a cycle.
Per JAX device those are 4 units of 128x128 on v5e and 8 on v5p, whose two cores run as one, as
Google's pages say; and 4 x 256x256 on v6e and tpu7x, where the pages have two units, but libtpu
takes fewer cycles for a large product than two could."""


@dataclass(frozen=True)
class Topology:
    """So many chips of a kind: `shape` is the slice of a TPU's torus, or (count,) of GPUs.

    `slices` of TPUs are joined by their hosts' network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """JAX's, of which TPU7x has two per chip."""
        return self.chips * self.chip.cores

    def __str__(self) -> str:
        times = f"{self.slices}x" if self.slices > 1 else ""
        return f"{times}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def spanned(self, size: int) -> list[int]:
        """Chips of each axis of a torus that `size` neighbours span, longest axis first."""
        found, reached = [], 1
        for length in sorted(self.shape, reverse=True):
            if reached < size:
                found.append(min(length, -(-size // reached)))
                reached *= length
        return found or [1]

    def bandwidth(self, size: int) -> float:
        """Bytes per second that a chip sends in a collective of `size` neighbouring chips.

        On TPU every axis that they span carries it, both ways where it closes to a ring. GPUs of a
        node share its links, others meet in the network.
        """
        chip = self.chip
        if not chip.is_tpu:
            return chip.link if size <= chip.node else chip.network
        return sum(chip.link * (2 if part >= chip.ring else 1) for part in self.spanned(size))

    def hops(self, size: int) -> float:
        """Links that a row crosses on its way to another of `size` neighbours, on average."""
        if not self.chip.is_tpu:
            return 1.0
        ways = (part / (4 if part >= self.chip.ring else 3) for part in self.spanned(size))
        return max(1.0, sum(ways))


def parse(text: str) -> Topology:
    """ "v5p:8x8x16", "v5e:1", "2xv5e:16x16" (two slices) or "h100:64".

    Raises:
        ValueError: no such chip, or a shape that it cannot have.
    """
    name, _, shape = text.partition(":")
    times = re.match(r"(\d+)x(?=[a-z])", name)
    name = name.removeprefix(times[0] if times else "")
    if name not in CHIPS:
        start = next((chip for chip in CHIPS if name.startswith(chip)), None)
        hint = f"say {start} and its shape, as {_example(CHIPS[start])}; " if start else ""
        raise ValueError(
            f"topology {text!r}: unknown chip {name!r}; {hint}known are {', '.join(CHIPS)}"
        )
    chip, sizes = CHIPS[name], (shape or "1").split("x")
    if not all(s.isdigit() and int(s) > 0 for s in sizes):
        raise ValueError(f"topology {text!r}: {shape!r} is no shape, as {_example(chip)} has one")
    found = tuple(map(int, sizes))
    allowed = (chip.dims,) if chip.is_tpu else (1,)
    if math.prod(found) > 1 and len(found) not in allowed:
        raise ValueError(
            f"topology {text!r}: {name} has {allowed[0]} axes, so a shape like "
            f"{name}:{'x'.join(['4'] * allowed[0])}, not {len(found)}"
        )
    slices = int(times[1]) if times else 1
    if slices < 1 or (slices > 1 and not chip.is_tpu):
        raise ValueError(
            f"topology {text!r}: slices are of TPUs, one or more; of GPUs give the count: h100:64"
        )
    return Topology(chip, found if math.prod(found) > 1 else (1,) * max(chip.dims, 1), slices)


def _example(chip: Chip) -> str:
    """A topology that the chip can have."""
    shape = "2x2x1" if chip.dims == 3 else "4x4" if chip.is_tpu else "8"
    return f"{chip.name}:{shape}"
