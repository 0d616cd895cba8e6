"""Matrices of one layer's experts, read where those of all layers lie.

A kernel takes whole arrays: what a scan cuts out of a stack would be copied before each call of
one. Told which layer, it finds its experts among all, and reads those that it needs.

Axes: L layers, E experts, D and F the two sides of an expert's matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MATRICES = ("gate", "up", "down")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layered:
    """dtype[E, D, F], as layer i32[] of whole[L, E, D, F]."""

    whole: jax.Array
    layer: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape[1:]

    @property
    def dtype(self) -> jnp.dtype:
        return self.whole.dtype


def cut_out(w: Any) -> Any:
    """A parameter as it is, or if it is `Layered`, without the other layers."""
    return _at(w.whole, w.layer) if isinstance(w, Layered) else w


def gradient(w: Any, of_layer: jax.Array) -> Any:
    """That of a parameter from that of what `cut_out` makes of it: other layers have none."""
    if not isinstance(w, Layered):
        return of_layer
    return Layered(jnp.zeros_like(w.whole).at[w.layer].set(of_layer), None)


def of_layer(params: dict, layer: jax.Array) -> dict:
    """The parameters of a layer i32[] of a stack [L, ...], those of experts `Layered`."""

    def cut(path: tuple, leaf: jax.Array) -> jax.Array | Layered:
        names = [getattr(key, "key", None) for key in path]
        if names[-3:-2] == ["moe"] and names[-2] in MATRICES and names[-1] == "w":
            return Layered(leaf, layer)
        return _at(leaf, layer)

    return jax.tree_util.tree_map_with_path(cut, params)


def _at(whole: jax.Array, layer: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(whole, layer, keepdims=False)
