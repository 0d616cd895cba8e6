"""What a decoder is: nested frozen dataclasses, each with exactly one implementation.

A model is a value. `Config` holds stacks, a stack repeats a short pattern of layers, and a layer is
a mixer (attention or a recurrence) and a feed-forward network. `None` means absent. Nothing here
names a model.

    DeepSeek-V3 = Config(stacks=(Stack(3, (dense,)), Stack(58, (moe,))), ...)

Sizes are counts of elements, lengths are tokens. All values are hashable, so `jax.jit` can
specialise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from zoo.config.checks import one_of, positive
from zoo.config.layers import (
    MLA,
    MLP,
    Activation,
    Attention,
    ClampedSwiGLU,
    GatedDelta,
    GroupScore,
    Indexer,
    LayerNorm,
    MoE,
    Norm,
    Score,
)
from zoo.config.positions import (
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Rope,
    Scaling,
    Temperature,
    YarnScaling,
)

__all__ = [  # noqa: RUF022 (in reading order)
    "Config", "Stack", "Layer", "stack_layers",
    "Attention", "MLA", "Indexer", "GatedDelta", "MLP", "MoE", "Norm", "LayerNorm", "ClampedSwiGLU",
    "Rope", "Scaling", "LinearScaling", "Llama3Scaling", "YarnScaling", "LongRope", "Temperature",
    "Activation", "Score", "GroupScore", "Placement",
]  # fmt: skip

Placement = Literal["pre", "post", "sandwich"]

LONGEST_PATTERN = 16
"""Layers of a pattern at most, when equal layers are grouped into stacks."""


@dataclass(frozen=True)
class Layer:
    """x + mixer(norm(x)), then x + ffn(norm(x)).

    Norms stand before a part ("pre"), behind it ("post", OLMo 2) or on both sides ("sandwich",
    Gemma 2); `ffn_placement` is for the second part, None as for the first. `residual_scale`
    multiplies what a part adds (Granite).
    """

    mixer: Attention | MLA | GatedDelta
    ffn: MLP | MoE
    norm: Norm | LayerNorm = Norm()
    placement: Placement = "pre"
    ffn_placement: Placement | None = None
    residual_scale: float = 1.0

    def __post_init__(self):
        one_of(self, "placement", get_args(Placement))
        one_of(self, "ffn_placement", (None, *get_args(Placement)))

    @property
    def norms(self) -> tuple[str, ...]:
        """The names of the layer's norms, in order of execution."""
        places = ("attn", self.placement), ("ffn", self.ffn_placement or self.placement)
        return tuple(
            f"{part}{kind}_norm"
            for part, place in places
            for kind, absent in (("", "post"), ("_post", "pre"))
            if place != absent
        )


@dataclass(frozen=True)
class Stack:
    """`repeats` copies of a pattern of layers, compiled once and scanned."""

    repeats: int
    layers: tuple[Layer, ...]

    def __post_init__(self):
        positive(self, "repeats")
        if not self.layers:
            raise ValueError("Stack.layers=() is empty: name at least one layer")


@dataclass(frozen=True)
class Config:
    """A whole decoder. `family` is the Hugging Face model_type that it is written as.

    Attributes:
        embed_scale: multiplies embeddings, rounded to the computation's type first (Gemma).
        logit_scale: multiplies logits; then `logit_softcap` c bounds them, c * tanh(logits / c).
        head_bias: a bias on the logits (Phi-3.5-MoE).
        mtp: the layers that predict further tokens, one per depth (DeepSeek-V3, arXiv:2412.19437
            section 2.2); they serve training and drafting, and share embeddings and head.
        max_length: the longest context, in tokens, that the model was made for.
    """

    vocab_size: int
    embed_dim: int
    stacks: tuple[Stack, ...]
    norm: Norm | LayerNorm = Norm()
    tie_embeddings: bool = False
    max_length: int = 2048
    family: str = "llama"
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    head_bias: bool = False
    mtp: tuple[Layer, ...] = ()

    def __post_init__(self):
        positive(self, "vocab_size", "embed_dim", "max_length")
        positive(self, "embed_scale", "logit_scale", "logit_softcap")
        if not self.stacks:
            raise ValueError("Config.stacks=() is empty: name at least one stack")
        if self.head_bias and self.tie_embeddings:
            raise ValueError("Config.head_bias=True needs tie_embeddings=False: a head of its own")
        self._check_followers()

    def _check_followers(self) -> None:
        mixers = [la.mixer for la in self.layers if isinstance(la.mixer, MLA)]
        choosers = [i for i, mixer in enumerate(mixers) if mixer.indexer is not None]
        followers = [i for i, mixer in enumerate(mixers) if mixer.follows]
        if followers and (not choosers or followers[0] < choosers[0]):
            raise ValueError("MLA.follows=True needs an earlier layer with an indexer to follow")
        if any(isinstance(la.mixer, MLA) and la.mixer.follows for la in self.mtp):
            raise ValueError("Config.mtp: MLA.follows=True needs an indexer in a layer before it")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer in order of execution."""
        return tuple(layer for s in self.stacks for _ in range(s.repeats) for layer in s.layers)

    @property
    def shares_choice(self) -> bool:
        """Whether any layer takes over what another one's indexer chose."""
        layers = (la for s in self.stacks for la in s.layers)
        return any(isinstance(la.mixer, MLA) and la.mixer.follows for la in layers)

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The distinct rotations, whose tables are computed once per call."""
        layers = (*(la for s in self.stacks for la in s.layers), *self.mtp)
        found = (la.mixer.rope for la in layers)
        return tuple(dict.fromkeys(rope for rope in found if rope is not None))


def stack_layers(layers: tuple[Layer, ...]) -> tuple[Stack, ...]:
    """Groups layers into stacks, each the shortest pattern that repeats furthest from there on.

    (a, a, b) -> Stack(2, (a,)), Stack(1, (b,)); (l, l, f, l, l, f, l) -> Stack(2, (l, l, f)),
    Stack(1, (l,)).
    """
    stacks: list[Stack] = []
    rest = layers
    while rest:
        period, repeats = max(
            ((p, _repeats(rest, p)) for p in range(1, min(len(rest), LONGEST_PATTERN) + 1)),
            key=lambda found: (found[0] * found[1] if found[1] > 1 else 0, -found[0]),
        )
        stacks.append(Stack(repeats, rest[:period]))
        rest = rest[period * repeats :]
    return tuple(stacks)


def _repeats(layers: tuple[Layer, ...], period: int) -> int:
    """How often the first `period` layers follow one another."""
    count = 1
    while layers[count * period : (count + 1) * period] == layers[:period]:
        count += 1
    return count
