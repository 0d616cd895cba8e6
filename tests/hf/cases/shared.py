"""What the shapes of several families share."""

from __future__ import annotations

SMALL = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
)
EXPERTS = dict(moe_intermediate_size=24, num_experts_per_tok=2, experts_implementation="eager")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
}


def untrained(path: str) -> bool:
    """Parameters that no gradient reaches: moved by a rule, or behind a choice."""
    return path.endswith("moe/bias/b") or "/indexer/" in path


def drop(kwargs: dict, *names: str) -> dict:
    """kwargs without some keys."""
    return {k: v for k, v in kwargs.items() if k not in names}


LATENT = dict(
    **drop(SMALL, "head_dim", "num_hidden_layers", "num_key_value_heads"),
    **EXPERTS,
    num_hidden_layers=3,
    num_key_value_heads=4,
    kv_lora_rank=16,
    q_lora_rank=20,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=10,
    n_routed_experts=8,
    first_k_dense_replace=1,
)
"""Latent attention and experts, as DeepSeek-V3 and those after it name them."""
