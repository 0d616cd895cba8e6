"""What a decoder is: nested frozen dataclasses, each with exactly one implementation.

A model is a value. `Config` holds stacks, a stack repeats a short pattern of layers, and a layer is
a mixer (attention) and a feed-forward network. `None` means absent. Nothing here names a model.

    DeepSeek-V3 = Config(stacks=(Stack(3, (dense,)), Stack(58, (moe,))), ...)

Sizes are counts of elements, lengths are tokens. All values are hashable, so `jax.jit` can
specialise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Score = Literal["softmax", "sigmoid"]


def _positive(value: object, *names: str) -> None:
    for name in names:
        field = getattr(value, name)
        if field is not None and not field > 0:
            raise ValueError(f"{type(value).__name__}.{name}={field} must be positive")


def _one_of(value: object, name: str, allowed: tuple[str, ...]) -> None:
    field, kind = getattr(value, name), type(value).__name__
    if field not in allowed:
        raise ValueError(f"{kind}.{name}={field!r} must be one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Norm:
    """RMSNorm (arXiv:1910.07467): statistics in float32, the scale applied after the cast back."""

    eps: float = 1e-6

    def __post_init__(self):
        _positive(self, "eps")


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv:2306.15595): every frequency divided by `factor`."""

    factor: float

    def __post_init__(self):
        _positive(self, "factor")


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling: long waves divided by `factor`, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def __post_init__(self):
        _positive(self, "factor", "low_freq_factor", "high_freq_factor", "original_length")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"Llama3Scaling.high_freq_factor={self.high_freq_factor} must be above "
                f"low_freq_factor={self.low_freq_factor}"
            )


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): a ramp over dimensions, and a factor on cos and sin.

    `attention_factor` multiplies cos and sin; `None` derives it from `factor`, `mscale` and
    `mscale_all_dim` as transformers does. What DeepSeek puts into the softmax scale is in
    `MLA.scale`.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        _positive(self, "factor", "original_length", "beta_fast", "beta_slow")


@dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv:2104.09864) over the first `dim` elements of a head.

    `interleaved` pairs neighbours (DeepSeek) instead of halves (Llama).
    """

    dim: int
    theta: float = 10_000.0
    interleaved: bool = False
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None

    def __post_init__(self):
        _positive(self, "dim", "theta")
        if self.dim % 2:
            raise ValueError(f"Rope.dim={self.dim} must be even: it rotates pairs")


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention (arXiv:2305.13245).

    `window` keeps the last `window` tokens, the token itself included. `qk_norm` normalises each
    head of q and k before the rotation (Qwen3). `scale` multiplies the scores; `None` is
    head_dim**-0.5.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None
    window: int | None = None
    qk_norm: Norm | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    scale: float | None = None

    def __post_init__(self):
        _positive(self, "heads", "kv_heads", "head_dim", "window", "scale")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"Attention.kv_heads={self.kv_heads} must divide heads={self.heads}: every kv head "
                "serves the same number of query heads"
            )
        if self.rope is not None and self.rope.dim > self.head_dim:
            raise ValueError(
                f"Attention.rope.dim={self.rope.dim} must not exceed head_dim={self.head_dim}"
            )


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434 section 2.1).

    Caches `kv_rank + rope_dim` values per token instead of expanded heads. `q_rank=None` projects
    the queries directly. `norm` acts on both latents. `scale=None` is (nope_dim + rope_dim)**-0.5.
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    rope: Rope
    norm: Norm = Norm()
    bias: bool = False
    scale: float | None = None

    def __post_init__(self):
        _positive(self, "heads", "q_rank", "kv_rank", "nope_dim", "rope_dim", "v_dim", "scale")
        if self.rope.dim != self.rope_dim:
            raise ValueError(f"MLA.rope.dim={self.rope.dim} must equal rope_dim={self.rope_dim}")


@dataclass(frozen=True)
class MLP:
    """Gated feed-forward network, down(act(gate(x)) * up(x)) (SwiGLU, arXiv:2002.05202)."""

    hidden: int
    act: Activation = "silu"
    bias: bool = False

    def __post_init__(self):
        _positive(self, "hidden")
        _one_of(self, "act", get_args(Activation))


@dataclass(frozen=True)
class MoE:
    """Dropless mixture of experts: each token goes to `top_k` of `experts` MLPs of size `hidden`.

    `score` turns router logits into affinities. `select_bias` adds a learnt-by-rule bias to the
    choice only, not to the weights (DeepSeek-V3, arXiv:2412.19437 section 2.1.2). `groups` and
    `top_groups` restrict the choice to the best groups. `renormalize` divides the chosen weights by
    their sum, then `scale` multiplies them. `fp32_router` keeps the router product and the weights
    in float32.
    """

    experts: int
    top_k: int
    hidden: int
    act: Activation = "silu"
    score: Score = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    select_bias: bool = False
    groups: int = 1
    top_groups: int = 1
    fp32_router: bool = False
    shared: MLP | None = None

    def __post_init__(self):
        _positive(self, "experts", "top_k", "hidden", "scale", "groups", "top_groups")
        _one_of(self, "act", get_args(Activation))
        _one_of(self, "score", get_args(Score))
        if self.experts % self.groups:
            raise ValueError(f"MoE.groups={self.groups} must divide experts={self.experts}")
        if self.top_groups > self.groups:
            raise ValueError(
                f"MoE.top_groups={self.top_groups} must not exceed groups={self.groups}"
            )
        reachable = self.experts // self.groups * self.top_groups
        if self.top_k > reachable:
            raise ValueError(
                f"MoE.top_k={self.top_k} must not exceed the {reachable} experts that "
                f"top_groups={self.top_groups} of groups={self.groups} leave to choose from"
            )
        if self.groups > 1 and self.experts // self.groups < 2:
            raise ValueError(
                f"MoE.groups={self.groups} of experts={self.experts}: a group is scored by its two "
                "best experts, so it needs at least two"
            )


@dataclass(frozen=True)
class Layer:
    """x + mixer(norm(x)), then x + ffn(norm(x))."""

    mixer: Attention | MLA
    ffn: MLP | MoE
    norm: Norm = Norm()


@dataclass(frozen=True)
class Stack:
    """`repeats` copies of a pattern of layers, compiled once and scanned."""

    repeats: int
    layers: tuple[Layer, ...]

    def __post_init__(self):
        _positive(self, "repeats")
        if not self.layers:
            raise ValueError("Stack.layers=() is empty: name at least one layer")


@dataclass(frozen=True)
class Config:
    """A whole decoder. `family` is the Hugging Face model_type that it is written as.

    `max_length` is the longest context, in tokens, that the model was made for.
    """

    vocab_size: int
    embed_dim: int
    stacks: tuple[Stack, ...]
    norm: Norm = Norm()
    tie_embeddings: bool = False
    max_length: int = 2048
    family: str = "llama"

    def __post_init__(self):
        _positive(self, "vocab_size", "embed_dim", "max_length")
        if not self.stacks:
            raise ValueError("Config.stacks=() is empty: name at least one stack")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer in order of execution."""
        return tuple(layer for s in self.stacks for _ in range(s.repeats) for layer in s.layers)

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The distinct rotations, whose tables are computed once per call."""
        found = (la.mixer.rope for s in self.stacks for la in s.layers if la.mixer.rope is not None)
        return tuple(dict.fromkeys(found))


def stack_layers(layers: tuple[Layer, ...]) -> tuple[Stack, ...]:
    """Groups equal neighbours into stacks: (a, a, b) -> Stack(2, (a,)), Stack(1, (b,))."""
    stacks: list[Stack] = []
    for layer in layers:
        if stacks and stacks[-1].layers == (layer,):
            stacks[-1] = dataclasses.replace(stacks[-1], repeats=stacks[-1].repeats + 1)
        else:
            stacks.append(Stack(1, (layer,)))
    return tuple(stacks)
