"""Hunyuan, dense and mixture of experts."""

from tests.hf.cases.shared import SMALL

ALPHA = {"rope_type": "dynamic", "rope_theta": 10_000.0, "alpha": 50.0, "factor": 1.0}
MOE = dict(num_experts=6, intermediate_size=24, experts_implementation="eager")
CASES = {
    "hunyuan": ("HunYuanDenseV1", {**SMALL, "rope_parameters": ALPHA}),
    "hunyuan_bias_tied": (
        "HunYuanDenseV1",
        {
            **SMALL,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
        },
    ),
    "hunyuan_moe": (
        "HunYuanMoEV1",
        {**SMALL, **MOE, "rope_parameters": ALPHA, "moe_topk": 2, "tie_word_embeddings": True},
    ),
    "hunyuan_moe_top_k_by_layer": (
        "HunYuanMoEV1",
        {**SMALL, **MOE, "moe_topk": [2, 3], "attention_bias": True, "num_key_value_heads": 1},
    ),
}
GOLDEN = {"hunyuan": dict(dtype="bfloat16"), "hunyuan_moe": dict(dtype="bfloat16")}
# The models' names, and the safetensors sizes of their repos; 4b is our own count.
PUBLISHED = {
    "hunyuan-0.5b": (0.539, None),
    "hunyuan-1.8b": (1.79, None),
    "hunyuan-4b": (4.22, None),
    "hunyuan-7b": (7.50, None),
    "hunyuan-mt-7b": (7.50, None),
    "hunyuan-a13b": (80, 13),
}
