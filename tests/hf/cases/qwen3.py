"""Qwen3, dense and mixture of experts."""

from tests.hf.cases.shared import EXPERTS, SMALL

CASES = {
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
}
GOLDEN = {
    "qwen3_window": dict(dtype="bfloat16"),
    "qwen3_moe": dict(dtype="bfloat16", max_shard_size="20KB"),
}
# arXiv:2505.09388 tables 1 and 2, Qwen3-Coder's card.
PUBLISHED = {
    "qwen3-0.6b": (0.6, None),
    "qwen3-1.7b": (1.7, None),
    "qwen3-4b": (4.0, None),
    "qwen3-4b-2507": (4.0, None),
    "qwen3-8b": (8.2, None),
    "qwen3-14b": (14.8, None),
    "qwen3-32b": (32.8, None),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235, 22),
    "qwen3-30b-a3b-2507": (30.5, 3.3),
    "qwen3-235b-a22b-2507": (235, 22),
    "qwen3-coder-30b-a3b": (30.5, None),
    "qwen3-coder-480b-a35b": (480, 35),
}
