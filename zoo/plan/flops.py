"""Operations that a model's mathematics needs, from its config alone.

Two per weight and token, and two per product of attention that is not masked. What a program does
beyond this (masked products, recomputation, padding) is its own choice and is not counted here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoo.config import MLA, MLP, Attention, Config, GatedDelta, Layer, MoE, Stack
from zoo.hf.layout import layer_shapes
from zoo.plan.workload import Workload


@dataclass(frozen=True)
class Work:
    """Operations of a forward pass over a whole batch, by what does them."""

    weights: float = 0.0
    experts: float = 0.0
    attention: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.experts + self.attention + self.head

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self._parts, other._parts, strict=True)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(factor * part for part in self._parts))

    @property
    def _parts(self) -> tuple[float, float, float, float]:
        return self.weights, self.experts, self.attention, self.head


def forward_of(cfg: Config, work: Workload) -> Work:
    """The forward pass of a program, of all chips together."""
    if work.mode == "decode":
        return forward(cfg, work.batch, 1, work.length - 1)
    if work.mode == "prefill":
        return forward(cfg, work.batch, work.length, logits=1)
    found = forward(cfg, work.batch, work.length)
    return found + predictors(cfg, work.batch, work.length) if work.mtp_loss else found


def passes(forward: Work, work: Workload) -> tuple[float, float]:
    """What a program makes of a forward pass, and what recomputing that adds."""
    if work.mode != "train":
        return forward.total, 0.0
    again = {
        "nothing": 0.0,
        "cheap": forward.attention,
        "everything": forward.total - forward.head,
    }[work.remat]
    if work.lora is None:
        return 3 * forward.total, again
    # What stays has no gradient of its own; products of adapters are a percent, and not counted.
    return 2 * forward.total + forward.attention, again


def forward(cfg: Config, batch: int, tokens: int, past: int = 0, logits: int | None = None) -> Work:
    """Of `tokens` new tokens in each of `batch` rows that hold `past` tokens already.

    Args:
        cfg: the model.
        batch: rows.
        tokens: new ones of a row.
        past: tokens of a row that the cache holds.
        logits: tokens of a row that logits are needed for; None is all.
    """
    needed = tokens if logits is None else logits
    head = Work(head=2.0 * batch * needed * cfg.embed_dim * cfg.vocab_size)
    return sum((of_stack(cfg, stack, batch, tokens, past) for stack in cfg.stacks), head)


def of_stack(cfg: Config, stack: Stack, batch: int, tokens: int, past: int = 0) -> Work:
    """The part of `forward` that the layers of one stack do."""
    layers = (_layer(cfg, layer, tokens, past) for layer in stack.layers)
    return sum(layers, Work()) * (stack.repeats * batch)


def predictors(cfg: Config, batch: int, tokens: int) -> Work:
    """A forward pass of the layers of multi-token prediction, each with logits of its own."""
    found = Work()
    for layer in cfg.mtp:
        extra = Work(weights=4.0 * tokens * cfg.embed_dim**2)
        head = Work(head=2.0 * tokens * cfg.embed_dim * cfg.vocab_size)
        found += _layer(cfg, layer, tokens, 0) + extra + head
    return found * batch


def _layer(cfg: Config, layer: Layer, tokens: int, past: int) -> Work:
    shapes = layer_shapes(layer, cfg.embed_dim)
    routed = {name for name in shapes if name.split("/")[:2] in _EXPERTS}
    weights = sum(math.prod(s) for name, s in shapes.items() if name not in routed)
    experts = 0.0
    if isinstance(layer.ffn, MoE):
        share = layer.ffn.top_k / layer.ffn.experts
        experts = share * sum(math.prod(shapes[name]) for name in routed)
    attention = _attention(layer.mixer, tokens, past)
    return Work(2.0 * tokens * weights, 2.0 * tokens * experts, attention)


_EXPERTS = [["moe", name] for name in ("gate", "up", "down")]


def _attention(mixer: Attention | MLA | GatedDelta, tokens: int, past: int) -> float:
    match mixer:
        case GatedDelta():  # what a key finds, the correction written, what a query reads
            return 6.0 * tokens * mixer.v_heads * mixer.k_dim * mixer.v_dim
        case MLA():
            pairs, scored = visible(tokens, past), 0.0
            if mixer.indexer is not None:
                scored = 2.0 * pairs * mixer.indexer.heads * mixer.indexer.dim
                pairs = visible(tokens, past, mixer.indexer.top_k)
            if past:  # absorbed: keys and values are the latents
                width = 2 * mixer.kv_rank + mixer.rope_dim
            else:
                width = mixer.nope_dim + mixer.rope_dim + mixer.v_dim
            return scored + 2.0 * pairs * mixer.heads * width
        case Attention():
            pairs = visible(tokens, past, mixer.window, mixer.chunk)
            return 2.0 * pairs * mixer.heads * (mixer.head_dim + mixer.value_dim)


def visible(tokens: int, past: int, window: int | None = None, chunk: int | None = None) -> int:
    """Pairs of a new token and one that it sees: all before it and itself, in window or chunk."""
    if chunk is not None:
        return sum(at % chunk + 1 for at in range(past, past + tokens))
    everything = past + tokens if window is None else window
    short = max(0, min(everything, past + tokens) - past)  # tokens that see less than the window
    return short * past + short * (short + 1) // 2 + (tokens - short) * everything


def activations_per_token(cfg: Config, layer: Layer) -> int:
    """Elements that a layer's products put out for a token: what "cheap" recomputation keeps."""
    shapes, total = layer_shapes(layer, cfg.embed_dim), 0
    for name, shape in shapes.items():
        if not name.endswith("/w"):
            continue
        if name.split("/")[:2] in _EXPERTS:
            total += layer.ffn.top_k * shape[2]
        else:
            total += math.prod(shape[1:]) if name.split("/")[-2] != "o" else cfg.embed_dim
    if isinstance(layer.ffn, MLP):
        total += layer.ffn.hidden
    return total
