"""The models that are compared: one set of random weights, in zoo and in transformers."""

from __future__ import annotations

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo

VOCAB = 8192

DENSE = dict(
    model_type="llama", vocab_size=VOCAB, hidden_size=512, intermediate_size=1408,
    num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, head_dim=64,
    max_position_embeddings=2048, tie_word_embeddings=False,
)  # fmt: skip
"""A Llama of 34M parameters, as Hugging Face configs have it."""


def sparse(experts: int) -> dict:
    """A Qwen3-MoE of 4 layers, top-2 of so many experts: the work per token is always the same."""
    return dict(
        model_type="qwen3_moe", vocab_size=VOCAB, hidden_size=256, intermediate_size=512,
        moe_intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, num_experts=experts, num_experts_per_tok=2,
        norm_topk_prob=True, decoder_sparse_step=1, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip


LATENT = dict(
    model_type="deepseek_v3", vocab_size=VOCAB, hidden_size=512, intermediate_size=1408,
    num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, q_lora_rank=256,
    kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64,
    first_k_dense_replace=7, n_routed_experts=8, n_group=1, topk_group=1, num_experts_per_tok=2,
    moe_intermediate_size=256, max_position_embeddings=2048, tie_word_embeddings=False,
)  # fmt: skip
"""The dense model with DeepSeek-V3's latent attention; the last layer has experts."""


def pair(shape: dict, **hf: Any) -> tuple[zoo.Decoder, dict, Any]:
    """zoo's model and parameters, and the same as a transformers model; `hf` goes to the latter."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    cfg = zoo.config_from_hf(shape)
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
