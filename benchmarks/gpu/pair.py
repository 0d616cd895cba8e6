"""The models of the GPU benchmarks, in zoo and in transformers on one device, and its peaks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pairs

import zoo
from zoo.plan import CHIPS, Chip

DENSE = pairs.DENSE | dict(
    vocab_size=32768, hidden_size=2048, intermediate_size=5632, num_hidden_layers=20,
    num_attention_heads=16, num_key_value_heads=8, head_dim=128,
)  # fmt: skip
"""A Llama of 1.0B parameters."""

SPARSE = pairs.sparse(32) | dict(
    vocab_size=32768, hidden_size=1024, moe_intermediate_size=768, num_hidden_layers=16,
    num_attention_heads=16, num_key_value_heads=4, head_dim=64, num_experts_per_tok=4,
)  # fmt: skip
"""A Qwen3-MoE of 1.3B parameters, of which a token uses a quarter."""

TINY = {"dense": pairs.DENSE, "sparse": pairs.sparse(8)}
FULL = {"dense": DENSE, "sparse": SPARSE}


def make(kind: str, tiny: bool, dtype: str) -> tuple[zoo.Decoder, dict, Any]:
    """zoo's model, float32 parameters, and the same in transformers on the device that JAX has.

    `dtype` is zoo's of the computation; torch runs the same under autocast or cast whole.
    """
    shape = (TINY if tiny else FULL)[kind]
    _, params, theirs = pairs.pair(shape, attn_implementation="sdpa")
    model = zoo.Decoder(zoo.config_from_hf(shape), dtype=jnp.dtype(dtype))
    return model, params, theirs.to(device())


def device() -> str:
    """torch's name of JAX's first device."""
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def chip() -> Chip | None:
    """What the data sheet says of the device, if we have it."""
    kind = jax.devices()[0].device_kind.lower()
    return next((found for name, found in CHIPS.items() if name in kind), None)
