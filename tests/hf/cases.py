"""Tiny models of every family, as keyword arguments of transformers' config classes.

Every size differs from the others where it can, so that a swapped axis cannot go unseen. `GOLDEN`
has committed files, made by `tests/make_golden.py`; `CASES` are also compared live.
"""

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
MLA = dict(
    num_key_value_heads=4,
    kv_lora_rank=16,
    q_lora_rank=20,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=10,
    n_routed_experts=8,
    first_k_dense_replace=1,
    num_hidden_layers=3,
    rms_norm_eps=1e-5,
)
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


def _drop(kwargs: dict, *names: str) -> dict:
    return {k: v for k, v in kwargs.items() if k not in names}


LLAMA = ("Llama", SMALL)
GOLDEN: dict[str, tuple[str, dict]] = {
    "llama": LLAMA,
    "llama_tied_llama3_bias": (
        "Llama",
        {
            **SMALL,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": LLAMA3_ROPE,
            "rms_norm_eps": 1e-5,
        },
    ),
    "qwen3_window": (
        "Qwen3",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **SMALL,
            **EXPERTS,
            "num_experts": 8,
            "num_hidden_layers": 3,
            "mlp_only_layers": [0],
            "norm_topk_prob": True,
        },
    ),
    "deepseek_v3_yarn": (
        "DeepseekV3",
        {
            **_drop(SMALL, "head_dim"),
            **EXPERTS,
            **MLA,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "attention_bias": True,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v3_full_q": (
        "DeepseekV3",
        {
            **_drop(SMALL, "head_dim"),
            **EXPERTS,
            **MLA,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
        },
    ),
}
CASES: dict[str, tuple[str, dict]] = {
    **GOLDEN,
    "llama_mha": ("Llama", {**_drop(SMALL, "head_dim"), "num_key_value_heads": 4}),
    "llama_mqa_gelu": (
        "Llama",
        {**SMALL, "num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "llama_linear": (
        "Llama",
        {
            **SMALL,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0},
        },
    ),
    "llama_yarn": ("Llama", {**SMALL, "rope_parameters": YARN}),
    "llama_yarn_factor": (
        "Llama",
        {
            **SMALL,
            "rope_parameters": {
                **YARN,
                "attention_factor": 1.3,
                "truncate": False,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
            },
        },
    ),
    "qwen3_tied": ("Qwen3", {**SMALL, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3_layer_types": (
        "Qwen3",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "qwen3_moe_sparse_step": (
        "Qwen3Moe",
        {
            **SMALL,
            **EXPERTS,
            "num_experts": 16,
            "num_experts_per_tok": 5,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "norm_topk_prob": False,
        },
    ),
    "qwen3_moe_window": (
        "Qwen3Moe",
        {
            **SMALL,
            **EXPERTS,
            "num_experts": 4,
            "use_sliding_window": True,
            "sliding_window": 6,
            "tie_word_embeddings": True,
        },
    ),
    "kimi_k2": (
        "DeepseekV3",
        {
            **_drop(SMALL, "head_dim"),
            **EXPERTS,
            **MLA,
            "n_routed_experts": 12,
            "num_experts_per_tok": 3,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.827,
            "rope_parameters": {
                **YARN,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 1.0,
                "beta_slow": 1.0,
            },
        },
    ),
    "deepseek_v3_half_rope": (
        "DeepseekV3",
        {
            **_drop(SMALL, "head_dim"),
            **EXPERTS,
            **MLA,
            "rope_interleave": False,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 0,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.5},
        },
    ),
}
