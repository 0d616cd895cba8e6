"""Descendants of DeepSeek-V3's attention: GLM-4.7-Flash, Youtu-LLM, A.X-K1."""

from tests.hf.cases.shared import LATENT, SMALL, YARN, drop

LITE = drop(LATENT, "first_k_dense_replace")

CASES = {
    "glm4_moe_lite": (
        "Glm4MoeLite",
        {
            **LITE,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "n_shared_experts": 2,
            "n_group": 2,
            "topk_group": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "youtu": (
        "Youtu",
        {
            **drop(LITE, "moe_intermediate_size", "num_experts_per_tok", "n_routed_experts"),
            "num_hidden_layers": SMALL["num_hidden_layers"],
            "q_lora_rank": None,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1.6e6},
        },
    ),
    "axk1": (
        "AXK1",
        {
            **LATENT,
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
}
GOLDEN = {
    "glm4_moe_lite": dict(dtype="float32"),
    "youtu": dict(dtype="bfloat16"),
    "axk1": dict(dtype="bfloat16"),
}
# Cards: GLM-4.7-Flash 30B-A3B, Youtu-LLM 1.96B, A.X-K1 519B-A33B.
PUBLISHED = {
    "glm-4.7-flash": (30, None),
    "youtu-llm-2b": (1.96, None),
    "a.x-k1": (519, 33),
}
