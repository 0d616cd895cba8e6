"""What a cache keeps vectors in: arrays of a type, or int8 codes beside their scales.

    x = codes * scales                                  a scale for every `GROUP` elements

Slots are the last axis but one of codes and of scales alike, so whatever moves the slots of an
array moves those of a `Rounded` by mapping over its leaves. A buffer of zeros is empty.

Axes: ... rows, heads and slots, H elements of a vector.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

GROUP = 128
"""Elements that share a scale at most; fewer where H does not divide, 64 of a latent's 576."""

LARGEST = 127
"""Of the codes, either sign."""


class Rounded(NamedTuple):
    """`codes` i8[..., H] and `scales` bf16[..., H / group]: off by half a scale at most, which is
    1/253 of the largest of its group."""

    codes: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape


Buffer = jax.Array | Rounded


def zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> Buffer:
    """An empty buffer; int8 makes it `Rounded`."""
    if jnp.dtype(dtype) != jnp.int8:
        return jnp.zeros(shape, dtype)
    *lead, width = shape
    groups = width // math.gcd(width, GROUP)
    return Rounded(jnp.zeros(shape, jnp.int8), jnp.zeros((*lead, groups), jnp.bfloat16))


def stored(x: jax.Array, like: Buffer) -> Buffer:
    """x[..., H] as `like` keeps it. What exceeds a float8 becomes its largest, not infinite."""
    if isinstance(like, Rounded):
        return _rounded(x, like.scales.shape[-1])
    if jnp.finfo(like.dtype).bits == 8:
        largest = jnp.finfo(like.dtype).max.astype(jnp.float32)
        x = jnp.clip(x.astype(jnp.float32), -largest, largest)
    return x.astype(like.dtype)


def loaded(buffer: Buffer, dtype: jnp.dtype) -> jax.Array:
    """What a buffer keeps, dtype[..., H]."""
    if not isinstance(buffer, Rounded):
        return buffer.astype(dtype)
    codes = _grouped(buffer.codes, buffer.scales.shape[-1]).astype(jnp.float32)
    x = codes * buffer.scales.astype(jnp.float32)[..., None]
    return x.reshape(buffer.shape).astype(dtype)


def _rounded(x: jax.Array, groups: int) -> Rounded:
    split = _grouped(x.astype(jnp.float32), groups)
    scales = (jnp.abs(split).max(-1) / LARGEST).astype(jnp.bfloat16)
    # By the scale as it is kept: its own rounding moves no code by more than a quarter.
    by = jnp.where(scales == 0, 1, scales).astype(jnp.float32)[..., None]
    codes = jnp.clip(jnp.round(split / by), -LARGEST, LARGEST)
    return Rounded(codes.astype(jnp.int8).reshape(x.shape), scales)


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """[..., H] -> [..., groups, H / groups]."""
    return x.reshape(*x.shape[:-1], groups, -1)
