"""How a mesh's axes cut a program: tokens, layers and weights of one device, by the rules.

`zoo.plan.estimate` makes bytes of memory of it, `zoo.plan.links` what devices exchange.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zoo import pipeline, zigzag
from zoo.config import MLA, Attention, Config, GatedDelta, Layer, MoE, Stack
from zoo.hf.layout import layer_shapes, shapes
from zoo.plan.flops import activations_per_token
from zoo.plan.workload import Workload
from zoo.sharding import Rules

BF16, F32 = 2, 4

LANES = 128
"""What the last axis of an array in a TPU's memory is filled up to."""


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

    def routed(self, layer: Layer) -> float:
        """The elements of `gathered` that are of routed experts."""
        shapes = layer_shapes(layer, self.cfg.embed_dim)
        return sum(
            math.prod(shape) / self._beside_embed(name)
            for name, shape in shapes.items() if _is_routed(name)
        )  # fmt: skip

    def fetched(self, layer: Layer) -> float:
        """Bytes that a device gathers to have the weights of `gathered`.

        Of rounded ones, outputs alone are cut (`zoo.hf.load`), so only maps that put out "embed"
        are gathered: the last of attention and of the MLP, forward as codes and backward as
        bfloat16, on the average of both.
        """
        if self.work.rounds_to is None:
            return self.gathered(layer) * BF16
        shapes = layer_shapes(layer, self.cfg.embed_dim)
        last = {name: n for name, n in shapes.items() if name.split("/")[-2] in ("o", "down")}
        elements = sum(math.prod(shape) / self._beside_embed(name) for name, shape in last.items())
        return elements * (self.work.weight_bytes + BF16) / 2

    def _beside_embed(self, name: str) -> int:
        """Over how many devices a weight is cut by other axes than "embed"."""
        cut = ("experts", "mlp") if _is_routed(name) else ("mlp",) if "mlp" in name else ("heads",)
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


def _is_routed(name: str) -> bool:
    """Whether a weight is of the experts that tokens choose."""
    return name.split("/")[:2] in (["moe", "gate"], ["moe", "up"], ["moe", "down"])
