"""The models that are compared: one set of random weights, in zoo and in transformers.

`DENSE` is a Llama of 34M parameters; `sparse(E)` a Qwen3 MoE with E experts of which a token uses
two, so that the work per token is the same for every E.
"""

from __future__ import annotations

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo import MLP, Attention, Config, Layer, MoE, Norm, Rope, Stack

VOCAB = 8192
DENSE = Config(
    VOCAB,
    512,
    (Stack(8, (Layer(Attention(8, 8, 64, Rope(64)), MLP(1408)),)),),
    max_length=2048,
    family="llama",
)


def sparse(experts: int) -> Config:
    """Four layers of width 256 with `experts` experts of width 256, two per token."""
    mixer = Attention(8, 4, 32, Rope(32), qk_norm=Norm())
    layer = Layer(mixer, MoE(experts=experts, top_k=2, hidden=256))
    return Config(VOCAB, 256, (Stack(4, (layer,)),), max_length=2048, family="qwen3_moe")


def pair(cfg: Config, **hf: Any) -> tuple[zoo.Decoder, dict, Any]:
    """zoo's model and parameters, and the same as a transformers model; `hf` goes to the latter."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = zoo.Decoder(cfg)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    with tempfile.TemporaryDirectory() as folder:
        zoo.save_hf(f"{folder}/hf", cfg, params)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            f"{folder}/hf", dtype="float32", **hf
        )
    return model, params, loaded


def tokens(batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Random ids, i64[B, T]."""
    return np.random.default_rng(seed).integers(3, VOCAB, (batch, length))


def size(params: dict) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def agree(got: Any, want: Any, bound: float = 1e-4) -> None:
    """Raises ValueError unless both arrays agree within `bound` of their scale."""
    got, want = np.asarray(got), np.asarray(want)
    error = np.abs(got - want).max() / np.abs(want).max()
    if not error <= bound:
        raise ValueError(f"the two models disagree by {error:.2g}: there is nothing to compare")
