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
    def shares(self) -> int:
        """How many layers back its keys and values come from; 0 if they are its own."""
        return (self.mixer.share_kv or 0) if isinstance(self.mixer, Attention) else 0

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
        for j, layer in enumerate(self.layers):
            if layer.shares:
                self._check_source(j, layer.mixer)

    def _check_source(self, j: int, mixer: Attention) -> None:
        """Raises ValueError unless layer j finds keys and values that it can use."""
        field, source = f"Stack.layers[{j}].mixer.share_kv={mixer.share_kv}", j - mixer.share_kv
        if source < 0:
            raise ValueError(f"{field} reaches before the pattern of {len(self.layers)} layers")
        found = self.layers[source].mixer
        if not isinstance(found, Attention) or found.share_kv is not None:
            raise ValueError(f"{field} must lead to attention with keys and values of its own")
        for name in ("kv_heads", "head_dim", "value_dim", "rope"):
            ours, theirs = getattr(mixer, name), getattr(found, name)
            if ours != theirs:
                raise ValueError(
                    f"{field}: its {name}={ours!r} must be layer {source}'s, {theirs!r}"
                )


@dataclass(frozen=True)
class Config:
    """A whole decoder. `family` is the Hugging Face model_type that it is written as.

    Attributes:
        embed_scale: multiplies embeddings, rounded to the computation's type first (Gemma).
        logit_scale: multiplies logits; then `logit_softcap` c bounds them, c * tanh(logits / c).
        head_bias: a bias on the logits (Phi-3.5-MoE).
        mtp: the layers that predict further tokens, one per depth (DeepSeek-V3, arXiv:2412.19437
            section 2.2); they serve training and drafting, and share embeddings and head.
        mtp_norm: whether each of these ends with a norm of its own; otherwise the final norm serves
            them too (ERNIE 4.5).
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
    mtp_norm: bool = True

    def __post_init__(self):
        if not self.mtp:  # so that a model without such layers is one Config
            object.__setattr__(self, "mtp_norm", True)
        positive(self, "vocab_size", "embed_dim", "max_length")
        positive(self, "embed_scale", "logit_scale", "logit_softcap")
        if not self.stacks:
            raise ValueError("Config.stacks=() is empty: name at least one stack")
        if self.head_bias and self.tie_embeddings:
            raise ValueError("Config.head_bias=True needs tie_embeddings=False: a head of its own")
        if any(layer.shares for layer in self.mtp):
            raise ValueError("Config.mtp: a layer that predicts needs keys and values of its own")
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
    Stack(1, (l,)). Layers that share keys and values stay together.
    """
    stacks: list[Stack] = []
    rest = _groups(layers)
    while rest:
        period, repeats = max(
            ((p, _repeats(rest, p)) for p in range(1, min(len(rest), LONGEST_PATTERN) + 1)),
            key=lambda found: (found[0] * found[1] if found[1] > 1 else 0, -found[0]),
        )
        stacks.append(Stack(repeats, tuple(la for group in rest[:period] for la in group)))
        rest = rest[period * repeats :]
    return tuple(stacks)


def _groups(layers: tuple[Layer, ...]) -> list[tuple[Layer, ...]]:
    """The layers, cut wherever no later one shares keys and values of an earlier one."""
    tied = {i - back for i, layer in enumerate(layers) for back in range(layer.shares)}
    cuts = [i for i in range(len(layers)) if i not in tied]
    return [layers[i:j] for i, j in zip(cuts, [*cuts[1:], len(layers)], strict=True)]


def _repeats(groups: list[tuple[Layer, ...]], period: int) -> int:
    """How often the first `period` groups follow one another."""
    count = 1
    while groups[count * period : (count + 1) * period] == groups[:period]:
        count += 1
    return count
