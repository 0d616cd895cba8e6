"""How exactly products are computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """Float32 means float32, also where the platform would round the factors of a product."""
    exact = jnp.dtype(dtype) == jnp.float32
    return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
