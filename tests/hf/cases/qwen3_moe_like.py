"""Relatives of Qwen3-MoE: Mellum 2, Flint."""

from tests.hf.cases.shared import EXPERTS, SMALL

BASE = {**SMALL, **EXPERTS, "num_experts": 4, "sliding_window": 5}
KINDS = ["sliding_attention", "full_attention"]

CASES = {
    "mellum": (
        "Mellum",
        {
            **BASE,
            "layer_types": KINDS,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "mellum_full": (
        "Mellum",
        {
            **BASE,
            "num_key_value_heads": 1,
            "mlp_layer_types": ["dense", "sparse"],
            "attention_bias": True,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
        },
    ),
    "flint": (
        "Flint",
        {
            **BASE,
            "shared_expert_intermediate_size": 20,
            "layer_types": KINDS,
            "mlp_only_layers": [],
        },
    ),
    "flint_dense": (
        "Flint",
        {
            **BASE,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "shared_expert_intermediate_size": 20,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "attention_bias": True,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
        },
    ),
}
GOLDEN = {"mellum": dict(dtype="bfloat16"), "flint": dict(dtype="bfloat16")}
# arXiv:2605.31268; flint is our own count.
PUBLISHED = {"mellum2-12b-a2.5b": (12, 2.5), "flint": (39.79, None)}
