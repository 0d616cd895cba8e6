"""Memory and traffic by arithmetic on shapes, for GPUs, for topologies that libtpu cannot make, and
for ranking meshes before any is compiled.

Parameters, optimizer, cache and batch are exact: they are what the shardings say. Temporaries and
traffic follow the rules that stand beside each term; compare them with compiled programs in
docs/plan.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zoo import pipeline, zigzag
from zoo.config import MLA, Attention, Config, GatedDelta, Layer, MoE, Stack
from zoo.hf.layout import layer_shapes, shapes
from zoo.plan.flops import activations_per_token
from zoo.plan.hlo import Collective
from zoo.plan.workload import Workload
from zoo.sharding import Rules
from zoo.training.losses import most_logits

BF16, F32 = 2, 4

LOGITS, LOGITS_OF_PARTS = 1.25, 3
"""How often a training step holds logits in float32, in one part or in several, as compiled."""


LANES = 128
"""What the last axis of an array in a TPU's memory is filled up to."""

ON_CHIP = 32 * 2**20
"""Bytes of a layer's work that compiled programs keep out of memory."""


class Schedule(NamedTuple):
    """How a batch goes through stages (`zoo.pipeline`): M microbatches, R times each."""

    stages: int
    microbatches: int
    rounds: int

    @property
    def ticks(self) -> int:
        """Groups of layers that a stage runs, those of the bubble included."""
        return self.microbatches * self.rounds + self.stages - 1

    @property
    def bubble(self) -> float:
        return pipeline.bubble(*self)


class Run(NamedTuple):
    """A layer that a device runs `times`, each on so many `tokens`, per part of `accumulate`."""

    layer: Layer
    times: int
    tokens: float
    staged: bool = False


class Layout:
    """How a mesh's axes cut tokens, layers and weights, read off the rules.

    `tokens` are those of a device, per part of `accumulate`; `schedule` is None where no stack runs
    in stages.

    Raises:
        ValueError: microbatches or rounds that the model or the batch do not divide by.
    """

    def __init__(self, cfg: Config, work: Workload, mesh: Mapping[str, int], rules: Rules):
        self.cfg, self.work, self.mesh, self.rules = cfg, work, dict(mesh), rules
        self.tokens = math.ceil(work.tokens / work.accumulate / self.parts("batch", "length"))
        self.stages = self.mesh.get(pipeline.AXIS, 1)
        self.schedule = None
        stacks, batch = (s.repeats for s in cfg.stacks), work.batch // work.accumulate
        sizes = batch, work.length, work.microbatches, work.rounds, self.parts("batch")
        if work.mode == "train" and (count := pipeline.check_all(stacks, self.mesh, *sizes)):
            self.schedule = Schedule(self.stages, count, work.rounds)

    def cut(self, stack: Stack) -> bool:
        """Whether stages hold a part of a stack each; otherwise each of them holds all of it."""
        return self.stages > 1 and stack.repeats % self.stages == 0

    def staged(self, stack: Stack) -> bool:
        """Whether a stack runs in stages; otherwise each of them runs all of it."""
        return self.cut(stack) and self.work.mode == "train"

    @property
    def repeating(self) -> int:
        """How many devices do the same: stages what is not in stages, and with a cache, where rows
        are whole, those that would share them."""
        return self.stages * (1 if self.work.mode == "train" else self.mesh.get(zigzag.AXIS, 1))

    def axes(self, logical: str) -> tuple[str, ...]:
        if logical == "length" and self.work.mode != "train":
            return ()
        found = self.rules.get(logical) or ()
        found = (found,) if isinstance(found, str) else tuple(found)
        return tuple(axis for axis in found if self.mesh.get(axis, 1) > 1)

    def parts(self, *logical: str) -> int:
        """Over how many devices these logical axes are cut together."""
        axes = {axis for name in logical for axis in self.axes(name)}
        return math.prod(self.mesh[axis] for axis in axes)

    def runs(self) -> Iterator[Run]:
        """Every distinct layer and how often a device runs it, in the stages' bubble too."""
        for stack in self.cfg.stacks:
            times, tokens, staged = stack.repeats, float(self.tokens), self.staged(stack)
            if staged:
                times = self.schedule.ticks * (times // (self.stages * self.schedule.rounds))
                tokens /= self.schedule.microbatches
            for layer in stack.layers:
                yield Run(layer, times, tokens, staged)
        if self.work.mode == "train":
            for layer in self.cfg.mtp:
                yield Run(layer, 1, self.tokens)

    @property
    def staged_share(self) -> float:
        """How much of a device's parameters are layers of which stages hold a part each."""
        names = {f"stack_{i}" for i, stack in enumerate(self.cfg.stacks) if self.cut(stack)}
        staged, rest = 0.0, 0.0
        for path, shape in shapes(self.cfg).items():
            if path.split("/")[0] in names:
                staged += math.prod(shape) / self.stages
            else:
                rest += math.prod(shape)
        return staged / (staged + rest)

    def gathered(self, layer: Layer) -> float:
        """Elements of a layer's weights on a device once those cut by "embed" are whole."""
        shapes = layer_shapes(layer, self.cfg.embed_dim)
        return sum(math.prod(shape) / self._beside_embed(name) for name, shape in shapes.items())

    def fetched(self, layer: Layer) -> float:
        """Bytes that a device gathers to have the weights of `gathered`.

        Of rounded ones, outputs alone are cut (`zoo.hf.load`), so only maps that put out "embed"
        are gathered: the last of attention and of the MLP.
        """
        if self.work.rounds_to is None:
            return self.gathered(layer) * BF16
        shapes = layer_shapes(layer, self.cfg.embed_dim)
        last = {name: n for name, n in shapes.items() if name.split("/")[-2] in ("o", "down")}
        elements = sum(math.prod(shape) / self._beside_embed(name) for name, shape in last.items())
        return elements * self.work.weight_bytes

    def _beside_embed(self, name: str) -> int:
        """Over how many devices a weight is cut by other axes than "embed"."""
        routed = name.split("/")[:2] in (["moe", "gate"], ["moe", "up"], ["moe", "down"])
        cut = ("experts", "mlp") if routed else ("mlp",) if "mlp" in name else ("heads",)
        return self.parts(*cut)

    def keys(self, layer: Layer) -> float:
        """Elements of a token's keys and values on a device, as attention within a row has them."""
        mixer = layer.mixer
        if isinstance(mixer, MLA):
            each = mixer.nope_dim + mixer.rope_dim + mixer.v_dim
            return mixer.heads * each / self.parts("heads")
        return mixer.kv_heads * (mixer.head_dim + mixer.value_dim) / self.parts("kv_heads")

    def at_once(self, layer: Layer) -> float:
        """Elements per token that attention or the MLP, the larger of the two, works with: queries,
        keys and values, or hidden units (of experts, also the rows that go in and out)."""
        match layer.mixer:
            case Attention() as a:
                sizes = (a.heads, a.head_dim), (a.kv_heads, a.head_dim), (a.kv_heads, a.value_dim)
            case MLA() as a:
                qk = a.nope_dim + a.rope_dim
                sizes = (a.heads, qk), (a.heads, qk), (a.heads, a.v_dim)
            case GatedDelta() as a:
                sizes = (a.k_heads, a.k_dim), (a.k_heads, a.k_dim), (2 * a.v_heads, a.v_dim)
        mixed = sum(heads * -(-size // LANES) * LANES for heads, size in sizes)
        hidden = layer.ffn.hidden
        if isinstance(layer.ffn, MoE):
            hidden = layer.ffn.top_k * (2 * hidden + self.cfg.embed_dim)
        return max(mixed / self.parts("heads"), hidden / self.parts("mlp"))

    def width(self, layer: Layer) -> float:
        """Elements that a layer's products put out for a token on a device."""
        return activations_per_token(self.cfg, layer) / self.parts("mlp", "heads")


def temporaries(
    layout: Layout, gradients: int, cache_bytes: int = 0, param_bytes: int = 0
) -> float:
    """Bytes of activations, gradients and buffers that a device needs at the peak.

    Args:
        layout: of the program.
        gradients: bytes of those of a step on a device: of what learns.
        cache_bytes: of the cache, of which a decoding step copies one repeat of a stack at a time.
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
        repeat = max(len(stack.layers) for stack in cfg.stacks) / len(cfg.layers)
        copied = cache_bytes * repeat if work.mode == "decode" else 0
        if any(map(layout.cut, cfg.stacks)):
            copied += _fetching(layout, cache_bytes, param_bytes)
        if work.mode == "prefill":
            return copied + 2 * whole * BF16 + _reading(layout)
        return copied + 2 * whole * BF16 + 2 * widest * BF16 + 4 * boundary + 2 * logits * F32
    working = 2 * whole * BF16 + 3 * widest * BF16 + 6 * boundary
    if layout.schedule is not None:
        working += _staging(layout, gradients, param_bytes)
    gradients *= 2 if work.accumulate > 1 else 1
    parts = work.tokens / work.accumulate * cfg.vocab_size > most
    held = (LOGITS_OF_PARTS if parts else LOGITS) * logits * F32
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
    cfg, work = layout.cfg, layout.work
    passes = {"everything": 4, "cheap": 3.2, "nothing": 3}[work.remat] * work.accumulate
    passes = passes if work.mode == "train" else 1
    total = 0.0
    for run in layout.runs():
        activations = run.tokens * 2 * (layout.width(run.layer) + 4 * cfg.embed_dim) * BF16
        weights = layout.gathered(run.layer) * _touched(layout, run) * BF16
        total += run.times * passes * (activations + weights)
    head = cfg.embed_dim * cfg.vocab_size / layout.parts("vocab") * BF16
    logits = layout.tokens * cfg.vocab_size / layout.parts("vocab") * F32
    if work.mode == "train":
        return total + 3 * head + 6 * logits + 3 * state_bytes
    return total + head + cache_bytes * (1 if work.mode == "decode" else 2)


def _touched(layout: Layout, run: Run) -> float:
    """The share of a layer's weights that at least one token needs, routers being even."""
    if not isinstance(run.layer.ffn, MoE):
        return 1.0
    spec, work = run.layer.ffn, layout.work
    tokens = work.tokens / work.accumulate * run.tokens / layout.tokens
    return 1 - (1 - spec.top_k / spec.experts) ** tokens


def collectives(layout: Layout, cache_bytes: int = 0) -> list[Collective]:
    """What the rules make devices exchange, per device and run of the program.

    Weights cut by "embed" are gathered for every pass and their gradients scattered; those that a
    batch axis does not cut are reduced over it; heads and hidden sizes that are cut cost two
    reductions of activations per pass; experts, two exchanges of each token's choices. In stages
    all that happens per tick. What a stage made goes to the next in every tick, forward and
    backward, and at the end to all; with several rounds, stages exchange layers and gradients.
    Without a schedule, stages fetch all of a stack, and of its part of a cache of `cache_bytes`,
    for each of its layers. Gradients of adapters are left out: they are a percent.
    """
    cfg, work, mesh = layout.cfg, layout.work, layout.mesh
    train = work.mode == "train"
    forward = (2 if work.remat != "nothing" else 1) if train else 1
    passes = (forward + 1 if train else 1) * work.accumulate
    found: list[Collective] = []

    def add(kind: str, axes: tuple[str, ...], calls: float, each: float) -> None:
        size = math.prod(mesh[axis] for axis in axes)
        if size > 1 and calls:
            found.append(Collective(kind, axes, size, round(calls), int(calls * each)))

    cut, batch = layout.axes("embed"), layout.axes("batch")
    tensor = tuple(dict.fromkeys(layout.axes("mlp") + layout.axes("heads")))
    runs = list(layout.runs())
    count = sum(run.times for run in runs)
    weights = sum(layout.gathered(run.layer) * run.times for run in runs) / count
    fetched = sum(layout.fetched(run.layer) * run.times for run in runs) / count
    add("all-gather", cut, count * (2 if train else 1) * work.accumulate, fetched)
    head = cfg.embed_dim * cfg.vocab_size / layout.parts("vocab")
    most = most_logits(math.prod(mesh.values()) // layout.stages)
    parts = math.ceil(work.tokens / work.accumulate * cfg.vocab_size / most) * work.accumulate
    add("all-gather", cut, 2 * parts if train else 1, head * BF16)
    if train and work.lora is None:
        add("all-reduce", cut, parts, head * F32)
        add("reduce-scatter", cut, count * work.accumulate, weights * F32)
        rest = batch + layout.axes("length")
        rest = tuple(a for a in rest if a not in cut and a not in layout.axes("experts"))
        add("all-reduce", rest, count, weights * F32 / layout.parts("embed"))
    width = cfg.embed_dim * BF16
    activations = sum(run.times * run.tokens for run in runs) * width
    add("all-reduce", tensor, 2 * count * passes, activations / count)
    for run in runs:
        if isinstance(run.layer.ffn, MoE):
            sent = run.tokens * width * run.layer.ffn.top_k
            add("all-to-all", layout.axes("experts"), 2 * run.times * passes, sent)
    if not train:
        return found + _fetched(layout, cache_bytes)
    return found + _between_stages(layout) + _around_the_ring(layout, forward)


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
