"""Memory and traffic by arithmetic on shapes, for GPUs, for topologies that libtpu cannot make, and
for ranking meshes before any is compiled.

Parameters, optimizer, cache and batch are exact: they are what the shardings say. Temporaries and
traffic follow the rules that stand beside each term; compare them with compiled programs in
docs/plan.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from zoo.config import Config, Layer, MoE
from zoo.hf.layout import layer_shapes
from zoo.plan.flops import activations_per_token
from zoo.plan.hlo import Collective
from zoo.plan.workload import Workload
from zoo.sharding import Rules
from zoo.training.losses import most_logits

BF16, F32 = 2, 4


class Layout:
    """How a mesh's axes cut tokens and weights, read off the rules."""

    def __init__(self, cfg: Config, work: Workload, mesh: Mapping[str, int], rules: Rules):
        self.cfg, self.work, self.mesh, self.rules = cfg, work, dict(mesh), rules
        rows = self.parts("batch") * self.parts("length")
        self.tokens = math.ceil(work.tokens / work.accumulate / rows)

    def axes(self, logical: str) -> tuple[str, ...]:
        found = self.rules.get(logical) or ()
        found = (found,) if isinstance(found, str) else tuple(found)
        return tuple(axis for axis in found if self.mesh.get(axis, 1) > 1)

    def parts(self, *logical: str) -> int:
        """Over how many devices these logical axes are cut together."""
        axes = {axis for name in logical for axis in self.axes(name)}
        return math.prod(self.mesh[axis] for axis in axes)

    def layers(self) -> Iterator[tuple[Layer, int]]:
        """Every distinct layer and how often it runs."""
        for stack in self.cfg.stacks:
            for layer in stack.layers:
                yield layer, stack.repeats
        if self.work.mode == "train":
            for layer in self.cfg.mtp:
                yield layer, 1

    def gathered(self, layer: Layer) -> float:
        """Elements of a layer's weights on a device once those cut by "embed" are whole."""
        total = 0.0
        for name, shape in layer_shapes(layer, self.cfg.embed_dim).items():
            part = name.split("/")[:2]
            routed = part in (["moe", "gate"], ["moe", "up"], ["moe", "down"])
            cut = ("experts", "mlp") if routed else ("mlp",) if "mlp" in name else ("heads",)
            total += math.prod(shape) / self.parts(*cut)
        return total

    def width(self, layer: Layer) -> float:
        """Elements that a layer's products put out for a token on a device."""
        return activations_per_token(self.cfg, layer) / self.parts("mlp", "heads")


def temporaries(layout: Layout, param_bytes: int, cache_bytes: int = 0) -> float:
    """Bytes of activations, gradients and buffers that a device needs at the peak.

    Args:
        layout: of the program.
        param_bytes: of the parameters on a device.
        cache_bytes: of the cache, of which a decoding step copies one repeat of a stack at a time.
    """
    cfg, work, tokens = layout.cfg, layout.work, layout.tokens
    boundary = tokens * cfg.embed_dim * BF16
    layers = list(layout.layers())
    widest = max(layout.width(layer) for layer, _ in layers)
    whole = max(layout.gathered(layer) for layer, _ in layers) if layout.axes("embed") else 0.0
    most = most_logits(math.prod(layout.mesh.values()))
    logits = min(work.tokens / work.accumulate * cfg.vocab_size, most)
    logits /= layout.parts("batch", "length", "vocab")
    if work.mode == "decode":
        logits = work.batch * cfg.vocab_size / layout.parts("batch", "vocab")
    if work.mode == "prefill":
        logits = 0.0
    if work.mode != "train":
        repeat = max(len(stack.layers) for stack in cfg.stacks) / len(cfg.layers)
        copied = cache_bytes * repeat if work.mode == "decode" else 0
        return (
            copied + 2 * whole * BF16 + 2 * tokens * widest * BF16 + 4 * boundary + 2 * logits * F32
        )
    kept = sum(times * _kept(layout, layer) for layer, times in layers) * tokens * BF16
    gradients = param_bytes * (2 if work.accumulate > 1 else 1)
    working = 2 * whole * BF16 + 3 * tokens * widest * BF16 + 6 * boundary
    return kept + gradients + working + 3 * logits * F32


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
    for layer, times in layout.layers():
        activations = layout.tokens * 2 * (layout.width(layer) + 4 * cfg.embed_dim) * BF16
        weights = layout.gathered(layer) * _touched(layout, layer) * BF16
        total += times * passes * (activations + weights)
    head = cfg.embed_dim * cfg.vocab_size / layout.parts("vocab") * BF16
    logits = layout.tokens * cfg.vocab_size / layout.parts("vocab") * F32
    if work.mode == "train":
        return total + 3 * head + 6 * logits + 3 * state_bytes
    return total + head + cache_bytes * (1 if work.mode == "decode" else 2)


def _touched(layout: Layout, layer: Layer) -> float:
    """The share of a layer's weights that at least one token needs, routers being even."""
    if not isinstance(layer.ffn, MoE):
        return 1.0
    spec, tokens = layer.ffn, layout.work.tokens / layout.work.accumulate
    return 1 - (1 - spec.top_k / spec.experts) ** tokens


def collectives(layout: Layout) -> list[Collective]:
    """What the rules make devices exchange, per device and run of the program.

    Weights cut by "embed" are gathered for every pass and their gradients scattered; those that a
    batch axis does not cut are reduced over it; heads and hidden sizes that are cut cost two
    reductions of activations per pass; experts, two exchanges of each token's choices.
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
    whole = [(layout.gathered(layer), times) for layer, times in layout.layers()]
    count = sum(times for _, times in whole)
    weights = sum(size * times for size, times in whole) / count
    add("all-gather", cut, count * (2 if train else 1) * work.accumulate, weights * BF16)
    head = cfg.embed_dim * cfg.vocab_size / layout.parts("vocab")
    most = most_logits(math.prod(mesh.values()))
    parts = math.ceil(work.tokens / work.accumulate * cfg.vocab_size / most) * work.accumulate
    add("all-gather", cut, 2 * parts if train else 1, head * BF16)
    if train:
        add("all-reduce", cut, parts, head * F32)
        add("reduce-scatter", cut, count * work.accumulate, weights * F32)
        rest = tuple(a for a in batch if a not in cut and a not in layout.axes("experts"))
        add("all-reduce", rest, count, weights * F32 / layout.parts("embed"))
    activations = layout.tokens * cfg.embed_dim * BF16
    add("all-reduce", tensor, 2 * count * passes, activations)
    for layer, times in layout.layers():
        if isinstance(layer.ffn, MoE):
            sent = activations * layer.ffn.top_k
            add("all-to-all", layout.axes("experts"), 2 * times * passes, sent)
    return found
