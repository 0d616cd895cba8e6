"""What devices exchange by arithmetic on shapes, as the rules that stand beside each term have it.

docs/plan.md compares it with compiled programs.
"""

from __future__ import annotations

import math

from zoo import pipeline
from zoo.config import GatedDelta, MoE
from zoo.plan.hlo import Collective
from zoo.plan.layout import BF16, F32, Layout


def collectives(layout: Layout, cache_bytes: int = 0) -> list[Collective]:
    """What the rules make devices exchange, per device and run of the program.

    Weights cut by "embed" are gathered for every pass; heads and hidden sizes that are cut cost two
    reductions of activations per pass; what tokens look up in an embedding that is cut is exchanged
    once per pass; of experts each token's choices travel, twice forward and three times backward
    (`zoo.owners`). In stages all that happens per tick. What a stage made goes to the next in every
    tick, forward and backward, and at the end to all; with several rounds, stages exchange layers
    and gradients. Without a schedule, stages fetch all of a stack, and of its part of a cache of
    `cache_bytes`, for each of its layers.
    """
    cfg, work = layout.cfg, layout.work
    train = work.mode == "train"
    forward = (2 if work.remat != "nothing" else 1) if train else 1
    passes = (forward + 1 if train else 1) * work.accumulate
    cut, runs = layout.axes("embed"), list(layout.runs())
    tensor = tuple(dict.fromkeys(layout.axes("mlp") + layout.axes("heads")))
    count = sum(run.times for run in runs)
    fetched = sum(layout.fetched(run.layer) * run.times for run in runs) / count
    found = _one(layout, "all-gather", cut, count * (2 if train else 1) * work.accumulate, fetched)
    head = _head(layout) * BF16
    found += _one(layout, "all-gather", cut, 2 * work.accumulate if train else 1, head)
    if train and work.lora is None:
        found += _gradients(layout)
    width = cfg.embed_dim * BF16
    lookups = work.accumulate * (2 if work.lora is None else 1) if train else 1
    found += _one(layout, "all-to-all", cut, lookups, layout.tokens * width)
    activations = sum(run.times * run.tokens for run in runs) * width
    found += _one(layout, "all-reduce", tensor, 2 * count * passes, activations / count)
    for run in runs:
        if isinstance(run.layer.ffn, MoE):
            sent = run.tokens * width * run.layer.ffn.top_k
            experts = layout.axes("experts")
            trips = 5 * work.accumulate if train else 2
            found += _one(layout, "all-to-all", experts, trips * run.times, sent)
    if not train:
        return found + _fetched(layout, cache_bytes)
    return found + _between_stages(layout) + _around_the_ring(layout, forward)


def _one(
    layout: Layout, kind: str, axes: tuple[str, ...], calls: float, each: float
) -> list[Collective]:
    """So many calls of so many bytes, if there is anyone to exchange them with."""
    size = math.prod(layout.mesh[axis] for axis in axes)
    if size == 1 or not calls * each:
        return []
    return [Collective(kind, axes, size, round(calls), int(calls * each))]


def _head(layout: Layout) -> float:
    """Elements on a device of the matrix that makes logits, or of the embedding."""
    return layout.cfg.embed_dim * layout.cfg.vocab_size / layout.parts("vocab")


def _gradients(layout: Layout) -> list[Collective]:
    """Gradients of weights are scattered over the axes that cut "embed", and what is left of them
    is reduced over the others that cut tokens: of layers in bfloat16, in which they are made, of
    the head and the embedding in float32. For an embedding that is cut, gradients go to it
    (`zoo.lookup`).

    Those of adapters are left out: they are a percent.
    """
    cut, experts, again = layout.axes("embed"), layout.axes("experts"), layout.work.accumulate
    seen = layout.axes("batch") + layout.axes("length")
    rest = tuple(axis for axis in seen if axis not in cut)
    alone = tuple(axis for axis in rest if axis not in experts)
    calls, routed, others = 0, 0.0, 0.0
    for run in layout.runs():
        own = layout.routed(run.layer)
        calls += run.times * again
        routed += run.times * again * own
        others += run.times * again * (layout.gathered(run.layer) - own)
    held, head = layout.parts("embed"), _head(layout) * F32
    each = (routed + others) * BF16 / calls
    return [
        *_one(layout, "reduce-scatter", cut, again, head),
        *_one(layout, "reduce-scatter", cut, calls, each),
        *_one(layout, "all-reduce", rest, again, head / held),
        *_one(layout, "all-reduce", rest, calls, others * BF16 / held / calls),
        *_one(layout, "all-reduce", alone, calls, routed * BF16 / held / calls),
        *_one(layout, "all-reduce", rest, again, head / held),
    ]


def _around_the_ring(layout: Layout, forward: int) -> list[Collective]:
    """What devices that share rows send: keys and values go around in every pass, and backward also
    their gradients in float32. A gated delta net gathers its row, and scatters the gradient."""
    n, again, axes = layout.parts("length"), layout.work.accumulate, layout.axes("length")
    hops, passed, gathers, gathered = 0.0, 0.0, 0.0, 0.0
    for run in layout.runs():
        if isinstance(run.layer.mixer, GatedDelta):
            gathers += run.times
            gathered += run.times * n * run.tokens * layout.cfg.embed_dim * BF16
        else:
            hops += run.times * n
            passed += run.times * n * run.tokens * layout.keys(run.layer)
    if n == 1:
        return []
    found = []
    if hops:
        calls, each = 2 * hops * (forward + 2), passed * (BF16 * (forward + 1) + F32)
        found.append(
            Collective("collective-permute", axes, n, int(again * calls), int(again * each))
        )
    if gathers:
        for kind, passes in (("all-gather", forward), ("reduce-scatter", 1)):
            calls, each = passes * gathers, passes * gathered
            found.append(Collective(kind, axes, n, int(again * calls), int(again * each)))
    return found


def _fetched(layout: Layout, cache_bytes: int) -> list[Collective]:
    """What stages get of each other where every one of them runs all layers."""
    cut, size = [stack for stack in layout.cfg.stacks if layout.cut(stack)], layout.stages
    held = cache_bytes * size if layout.work.mode == "decode" else 0
    count = sum(stack.repeats * len(stack.layers) for stack in cut)
    moved = 0.0
    for stack in cut:
        layers = sum(map(layout.gathered, stack.layers)) / layout.parts("embed") * stack.repeats
        part = stack.repeats * len(stack.layers) / count
        moved += stack.repeats * (layers * layout.work.param_dtype.itemsize + part * held)
    calls = sum(stack.repeats for stack in cut)
    return [Collective("all-gather", (pipeline.AXIS,), size, calls, int(moved))] if cut else []


def _between_stages(layout: Layout) -> list[Collective]:
    """What stages pass on; what the last made; and the gradient of what came in, in float32."""
    if layout.schedule is None:
        return []
    cfg, (size, count, rounds) = layout.cfg, layout.schedule
    again, axes = layout.work.accumulate, (pipeline.AXIS,)
    ticks = 2 * layout.schedule.ticks * again
    whole = layout.tokens * cfg.embed_dim * BF16
    found = [
        Collective("collective-permute", axes, size, ticks, int(ticks * whole / count)),
        Collective("all-reduce", axes, size, 2 * again, int(again * whole * (1 + F32 / BF16))),
    ]
    if rounds > 1:
        weights = sum(
            layout.gathered(layer) * stack.repeats / size / layout.parts("embed")
            for stack in filter(layout.staged, cfg.stacks) for layer in stack.layers
        )  # fmt: skip
        sent = int(2 * again * weights * layout.work.weight_bytes)
        found.append(Collective("collective-permute", axes, size, 2 * again * rounds, sent))
    return found
