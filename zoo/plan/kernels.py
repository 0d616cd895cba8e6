"""What is known of the Pallas kernels of a program for TPU, which its compiler does not estimate.

No kernel is faster than its products at the peak, or than what it reads at the memory's full rate.
"""

from __future__ import annotations

import math

from zoo import attention_tpu
from zoo.config import Attention, Config
from zoo.plan import estimate, flops
from zoo.plan.cycles import ATTENTION, EXPERTS, PRODUCTS, Parts
from zoo.plan.hardware import Topology
from zoo.plan.hlo import Counted
from zoo.plan.layout import Layout


def seconds(counted: Counted, layout: Layout, topology: Topology) -> Parts:
    """Of a device: of attention what its kernels do not skip; of experts the rows that tokens
    choose, not all that buffers hold, or reading their matrices; of others reading once all that
    goes into them."""
    cfg, work, cores = layout.cfg, layout.work, topology.chip.cores
    peak, hbm = topology.chip.flops / cores, topology.chip.hbm / cores
    found = {part: given / hbm for part, given in counted.given.items()}
    if counted.attended:
        found[ATTENTION, PRODUCTS] = counted.attended * _kept(cfg, work.length) / peak
    if counted.stated:
        experts = flops.Work(experts=flops.forward_of(cfg, work).experts)
        needed = min(counted.stated, sum(flops.passes(experts, work)) / topology.devices)
        found[EXPERTS, PRODUCTS] = max(needed / peak, estimate.expert_traffic(layout) / hbm)
    return found


def _kept(cfg: Config, length: int) -> float:
    """The share of a square of scores that splash attention's blocks do not skip."""
    block = math.gcd(length, attention_tpu.BLOCK)
    blocks, shares = length // block, []
    for layer in cfg.layers:
        window = layer.mixer.window if isinstance(layer.mixer, Attention) else None
        before = blocks if window is None else -(-(window - 1) // block)
        shares.append(sum(min(row, before) + 1 for row in range(blocks)) / blocks**2)
    return sum(shares) / len(shares)
