"""Memory by arithmetic on shapes, for GPUs, for topologies that libtpu cannot make, and for ranking
meshes before any is compiled.

Parameters, optimizer, cache and batch are exact: they are what the shardings say. Temporaries and
traffic follow the rules that stand beside each term; compare them with compiled programs in
docs/plan.md.
"""

from __future__ import annotations

import math

from zoo.config import MLA, Layer, MoE
from zoo.hf.layout import shapes
from zoo.plan.layout import BF16, F32, Layout, Run
from zoo.plan.workload import Workload
from zoo.training.losses import most_logits

LOGITS, LOGITS_OF_PIECES = 1.25, 3
"""How often a training step holds logits in float32, in one part or in several, as compiled."""

ON_CHIP = 32 * 2**20
"""Bytes of a layer's work that compiled programs keep out of memory."""


def temporaries(
    layout: Layout, gradients: int, cache_bytes: int = 0, param_bytes: int = 0
) -> float:
    """Bytes of activations, gradients and buffers that a device needs at the peak.

    Args:
        layout: of the program.
        gradients: bytes of those of a step on a device: of what learns.
        cache_bytes: of the cache, which stages fetch; others read it where it lies.
        param_bytes: of the parameters, which stages exchange, or fetch from each other.
    """
    cfg, work, tokens = layout.cfg, layout.work, layout.tokens
    boundary = tokens * cfg.embed_dim * BF16
    runs = list(layout.runs())
    widest = max(run.tokens * layout.width(run.layer) for run in runs)
    whole = max(layout.gathered(run.layer) for run in runs) if layout.axes("embed") else 0.0
    most = most_logits(math.prod(layout.mesh.values()) // layout.stages)
    logits = min(work.tokens / work.accumulate * cfg.vocab_size, most)
    logits /= layout.parts("batch", "length", "vocab")
    if work.mode == "decode":
        logits = work.batch * cfg.vocab_size / layout.parts("batch", "vocab")
    if work.mode != "train":
        staged = any(map(layout.cut, cfg.stacks))
        fetched = _fetching(layout, cache_bytes, param_bytes) if staged else 0.0
        if work.mode == "prefill":
            return fetched + 2 * whole * BF16 + _reading(layout)
        return fetched + 2 * whole * BF16 + 2 * widest * BF16 + 4 * boundary + 2 * logits * F32
    working = 2 * whole * BF16 + 3 * widest * BF16 + 6 * boundary
    if layout.schedule is not None:
        working += _staging(layout, gradients, param_bytes)
    gradients *= 2 if work.accumulate > 1 else 1
    parts = work.tokens / work.accumulate * cfg.vocab_size > most
    held = (LOGITS_OF_PIECES if parts else LOGITS) * logits * F32
    return _all_kept(layout) * BF16 + gradients + max(working, held)


def _reading(layout: Layout) -> float:
    """Bytes of activations of a prefill, as compiled: what goes from layer to layer two and a half
    times, and what one part of a layer works with at a time, but for what stays on the chip."""
    boundary = layout.tokens * layout.cfg.embed_dim * BF16
    works = max(run.tokens * layout.at_once(run.layer) for run in layout.runs()) * BF16
    return max(2 * boundary, 2.5 * boundary + works - ON_CHIP)


def _fetching(layout: Layout, cache_bytes: int, param_bytes: int) -> float:
    """Bytes of what stages without a schedule fetch at a time: one parameter of all layers of a
    stack, and in decoding their keys or their values."""
    names = tuple(f"stack_{i}/" for i, one in enumerate(layout.cfg.stacks) if layout.cut(one))
    sizes = [math.prod(s) for path, s in shapes(layout.cfg).items() if path.startswith(names)]
    found = layout.staged_share * param_bytes * max(sizes) / sum(sizes)
    if layout.work.mode == "decode":
        latent = any(isinstance(layer.mixer, MLA) for layer in layout.cfg.layers)
        found += cache_bytes / (1 if latent else 2)
    return found * layout.stages


def _all_kept(layout: Layout) -> float:
    """Elements that all layers keep for the backward pass.

    With several rounds, stages recompute a group of layers together: they keep what comes into it,
    and while it is made again all that its layers put out.
    """
    schedule, total = layout.schedule, 0.0
    grouped = schedule is not None and schedule.rounds > 1 and layout.work.remat == "everything"
    for run in layout.runs():
        if grouped and run.staged:
            made = 2.5 * (layout.cfg.embed_dim + layout.width(run.layer))
            total += run.times / schedule.ticks * run.tokens * made
        else:
            total += run.times * run.tokens * _kept(layout, run.layer)
    return total + (_sent(layout) / BF16 if grouped else 0.0)


def _sent(layout: Layout) -> float:
    """Bytes of activations that a stage passes on in all ticks of a forward pass."""
    schedule, stacks = layout.schedule, sum(map(layout.staged, layout.cfg.stacks))
    ticks = stacks * schedule.ticks * layout.tokens / schedule.microbatches
    return ticks * layout.cfg.embed_dim * BF16


def _staging(layout: Layout, gradients: float, param_bytes: float) -> float:
    """Bytes of what comes in and goes out in microbatches; of several rounds, also of the layers
    that a stage runs, which are those of others: twice as they come, then beside their gradients.
    """
    found = layout.tokens * layout.cfg.embed_dim * BF16 + _sent(layout)
    if layout.schedule.rounds == 1:
        return found
    return found + layout.staged_share * (param_bytes + max(param_bytes, gradients))


def _kept(layout: Layout, layer: Layer) -> float:
    """Elements per token that a layer keeps for the backward pass."""
    boundary = layout.cfg.embed_dim
    if layout.work.remat == "everything":
        return boundary
    kept = boundary + layout.width(layer)
    return kept if layout.work.remat == "cheap" else 2.5 * kept


def memory_traffic(layout: Layout, state_bytes: int, cache_bytes: int) -> float:
    """Bytes that a device reads and writes in its memory, each tensor as often as a pass needs it.

    Activations are read and written by every product and every norm; a training step does that
    forward, for the recomputation, and twice backward, and reads and writes its state once.
    """
    cfg, work, passes, total = layout.cfg, layout.work, _passes(layout.work), 0.0
    for run in layout.runs():
        activations = run.tokens * 2 * (layout.width(run.layer) + 4 * cfg.embed_dim) * BF16
        weights = layout.gathered(run.layer) * _touched(layout, run) * BF16
        total += run.times * passes * (activations + weights)
    head = cfg.embed_dim * cfg.vocab_size / layout.parts("vocab") * BF16
    logits = layout.tokens * cfg.vocab_size / layout.parts("vocab") * F32
    if work.mode == "train":
        return total + 3 * head + 6 * logits + 3 * state_bytes
    return total + head + cache_bytes * (1 if work.mode == "decode" else 2)


def expert_traffic(layout: Layout) -> float:
    """The part of it that is matrices of routed experts."""
    return (
        _passes(layout.work)
        * BF16
        * sum(run.times * layout.routed(run.layer) * _touched(layout, run) for run in layout.runs())
    )


def _passes(work: Workload) -> float:
    """How often a program goes through its layers."""
    if work.mode != "train":
        return 1
    return {"everything": 4, "cheap": 3.2, "nothing": 3}[work.remat] * work.accumulate


def _touched(layout: Layout, run: Run) -> float:
    """The share of a layer's weights that at least one token needs, routers being even."""
    if not isinstance(run.layer.ffn, MoE):
        return 1.0
    spec, work = run.layer.ffn, layout.work
    tokens = work.tokens / work.accumulate * run.tokens / layout.tokens
    return 1 - (1 - spec.top_k / spec.experts) ** tokens
