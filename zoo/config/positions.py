"""How positions enter attention: rotary embedding, its long-context scalings, temperature."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.config.checks import positive


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv:2306.15595): every frequency divided by `factor`."""

    factor: float

    def __post_init__(self):
        positive(self, "factor")


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling: long waves divided by `factor`, short ones kept, a ramp between.

    Equal factors leave no ramp (Llama 4 Scout).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def __post_init__(self):
        positive(self, "factor", "low_freq_factor", "high_freq_factor", "original_length")
        if self.high_freq_factor < self.low_freq_factor:
            raise ValueError(
                f"Llama3Scaling.high_freq_factor={self.high_freq_factor} must not be below "
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
        positive(self, "factor", "original_length", "beta_fast", "beta_slow")


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (arXiv:2402.13753): a divisor per pair, one set up to `original_length` tokens.

    `short` and `long` have a divisor for each of the dim / 2 pairs; `long` takes over for rows with
    a position at or beyond `original_length`. The factors multiply cos and sin in either state.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    short_factor: float
    long_factor: float

    def __post_init__(self):
        positive(self, "original_length", "short_factor", "long_factor")
        if len(self.short) != len(self.long):
            raise ValueError(
                f"LongRope.short has {len(self.short)} divisors and long has {len(self.long)}: "
                "each pair needs one of both"
            )


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongRope


@dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv:2104.09864) over the first `dim` elements of a head.

    `interleaved` pairs neighbours (DeepSeek) instead of halves (Llama). `wide` rotates in float32
    instead of rounding cos and sin to the activations' type first.
    """

    dim: int
    theta: float = 10_000.0
    interleaved: bool = False
    scaling: Scaling | None = None
    wide: bool = False

    def __post_init__(self):
        positive(self, "dim", "theta")
        if self.dim % 2:
            raise ValueError(f"Rope.dim={self.dim} must be even: it rotates pairs")
        if isinstance(self.scaling, LongRope) and len(self.scaling.short) != self.dim // 2:
            raise ValueError(
                f"LongRope.short has {len(self.scaling.short)} divisors, Rope.dim={self.dim} needs "
                f"{self.dim // 2}: one per pair"
            )


@dataclass(frozen=True)
class Temperature:
    """A factor on the queries that grows with the position (arXiv:2501.19399).

    1 + beta * log(1 + floor((position + shift) / length)): Llama 4 shifts by 1, Ministral 3 by 0.
    """

    beta: float
    length: float
    shift: int = 0

    def __post_init__(self):
        positive(self, "length")
