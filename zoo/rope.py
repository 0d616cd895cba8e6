"""Rotary position embedding (RoFormer, arXiv:2104.09864) and its long-context scalings, as
functions.

Axes: B batch, T query positions, N heads, H head dimension, P = rope.dim / 2 rotated pairs.

`frequencies` is host arithmetic on a `Rope`; `tables` turns positions into cos and sin once per
call; `rotate` applies them. Follows `modeling_rope_utils.py` of transformers in order and in
precision.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from zoo import kernels
from zoo.config import (
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Rope,
    Temperature,
    YarnScaling,
)

Turn = tuple[jax.Array, jax.Array]
"""cos and sin of `tables`."""


def frequencies(rope: Rope, far: bool = False) -> tuple[np.ndarray, float]:
    """Angle per position of each pair, f32[P] in radians, and the factor on cos and sin.

    `far` asks for those of `LongRope` beyond its original length; others have one set.
    """
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    base = np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32)
    inverse = np.float32(1.0) / base
    match rope.scaling:
        case None:
            return inverse, 1.0
        case LinearScaling(factor):
            return inverse / np.float32(factor), 1.0
        case Llama3Scaling() as scaling:
            return _llama3(inverse, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(base, rope, scaling), _yarn_attention_factor(scaling)
        case LongRope() as scaling:
            divisors = np.asarray(scaling.long if far else scaling.short, np.float32)
            factor = scaling.long_factor if far else scaling.short_factor
            return np.float32(1.0) / (divisors * base), factor


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln(factor) + 1, the YaRN temperature (arXiv:2309.00071 section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def tables(rope: Rope, positions: jax.Array, dtype: jnp.dtype) -> Turn:
    """cos and sin, dtype[B, T, P], of i32[B, T] positions; float32 for a `wide` rope."""
    inverse, factor = frequencies(rope)
    if isinstance(rope.scaling, LongRope):
        far = positions.max(-1, keepdims=True)[..., None] >= rope.scaling.original_length
        long_inverse, long_factor = frequencies(rope, far=True)
        inverse, factor = jnp.where(far, long_inverse, inverse), jnp.where(far, long_factor, factor)
    angles = positions[..., None].astype(jnp.float32) * inverse
    dtype = jnp.float32 if rope.wide else dtype
    return (jnp.cos(angles) * factor).astype(dtype), (jnp.sin(angles) * factor).astype(dtype)


def borders(ropes: tuple[Rope, ...]) -> tuple[int, ...]:
    """Lengths in tokens beyond which LongRope turns all keys of a text in another way.

    A cache that grows past one has to be filled again.
    """
    scalings = (rope.scaling for rope in ropes if isinstance(rope.scaling, LongRope))
    return tuple(scaling.original_length for scaling in scalings)


def temperature(spec: Temperature, positions: jax.Array) -> jax.Array:
    """The factor on queries, f32[B, T, 1, 1], of i32[B, T] positions."""
    steps = jnp.floor((positions.astype(jnp.float32) + spec.shift) / spec.length)
    return (1.0 + spec.beta * jnp.log1p(steps))[..., None, None]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool = False) -> jax.Array:
    """Rotates the first 2P elements of each head of x[B, T, N, H]; the rest passes through.

    Computes in the wider type of x and cos, and returns x's. The result is in half layout even for
    interleaved input, as in transformers: q and k agree, and nothing else sees the order.
    """
    dim = 2 * cos.shape[-1]
    turned, passed = x[..., :dim], x[..., dim:]
    a, b = kernels.apart(turned) if interleaved else jnp.split(turned, 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    halves = (a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype)
    return jnp.concatenate((*halves, passed), axis=-1)


def _llama3(inverse: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    wavelength = np.float32(2 * math.pi) / inverse
    longest = np.float32(scaling.original_length / scaling.low_freq_factor)
    shortest = np.float32(scaling.original_length / scaling.high_freq_factor)
    factor = np.float32(scaling.factor)
    scaled = np.where(wavelength > longest, inverse / factor, inverse)
    if longest == shortest:
        return scaled
    smooth = (
        np.float32(scaling.original_length) / wavelength - np.float32(scaling.low_freq_factor)
    ) / (np.float32(scaling.high_freq_factor - scaling.low_freq_factor))
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    medium = (wavelength >= shortest) & (wavelength <= longest)
    return np.where(medium, blended, scaled).astype(np.float32)


def _yarn(base: np.ndarray, rope: Rope, scaling: YarnScaling) -> np.ndarray:
    def correction_dim(rotations: float) -> float:
        turns = math.log(scaling.original_length / (rotations * 2 * math.pi))
        return rope.dim * turns / (2 * math.log(rope.theta))

    low, high = correction_dim(scaling.beta_fast), correction_dim(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001  # the reference's guard; Kimi K2's beta_fast = beta_slow reaches it
    ramp = (np.arange(rope.dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    extrapolated = 1 - np.clip(ramp, 0, 1)
    interpolation = np.float32(1.0) / (np.float32(scaling.factor) * base)
    extrapolation = np.float32(1.0) / base
    return interpolation * (1 - extrapolated) + extrapolation * extrapolated


def _yarn_attention_factor(scaling: YarnScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        all_dim = yarn_mscale(scaling.factor, scaling.mscale_all_dim)
        return yarn_mscale(scaling.factor, scaling.mscale) / all_dim
    return yarn_mscale(scaling.factor)
