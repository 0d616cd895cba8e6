"""Qwen2-MoE."""

from tests.hf.cases.shared import EXPERTS, SMALL, drop

MOE = dict(num_experts=4, shared_expert_intermediate_size=20)

CASES = {
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **SMALL,
            **EXPERTS,
            **MOE,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
            "mlp_only_layers": [1],
        },
    ),
    "qwen2_moe_tied": (
        "Qwen2Moe",
        {
            **drop(SMALL, "head_dim"),
            **EXPERTS,
            **MOE,
            "num_key_value_heads": 1,
            "qkv_bias": False,
            "norm_topk_prob": True,
            "tie_word_embeddings": True,
        },
    ),
}
GOLDEN = {"qwen2_moe": dict(dtype="bfloat16")}
# Cards of Qwen1.5-MoE-A2.7B (14.3B) and Qwen2-57B-A14B (57.4B, 14.2B).
PUBLISHED = {"qwen1.5-moe-a2.7b": (14.3, 2.7), "qwen2-57b-a14b": (57.4, 14.2)}
