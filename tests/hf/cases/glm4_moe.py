"""GLM-4.5 and relatives with DeepSeek-V3's router: Solar Open, K-EXAONE, Hy3."""

from tests.hf.cases.shared import EXPERTS, SMALL, drop

SIGMOID = {**SMALL, **EXPERTS, "routed_scaling_factor": 1.7}
GROUPED = dict(n_group=2, topk_group=1)

CASES = {
    "glm4_moe": (
        "Glm4Moe",
        {
            **SIGMOID,
            **GROUPED,
            "head_dim": 12,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "attention_bias": True,
            "use_qk_norm": True,
        },
    ),
    "glm4_moe_dense_first": (
        "Glm4Moe",
        {
            **drop(SIGMOID, "head_dim"),
            "num_key_value_heads": 1,
            "n_routed_experts": 4,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 2,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
        },
    ),
    "solar_open": ("SolarOpen", {**SIGMOID, **GROUPED, "n_routed_experts": 4}),
    "exaone_moe": (
        "ExaoneMoe",
        {
            **SIGMOID,
            **GROUPED,
            "num_experts": 4,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "sliding_window_pattern": 2,
        },
    ),
    "exaone_moe_types": (
        "ExaoneMoe",
        {
            **SIGMOID,
            "num_experts": 4,
            "num_shared_experts": 2,
            "num_key_value_heads": 1,
            "sliding_window": 5,
            "layer_types": ["sliding_attention"] * 2,
            "mlp_layer_types": ["sparse", "dense"],
            "tie_word_embeddings": True,
        },
    ),
    "hy_v3": (
        "HYV3",
        {
            **SMALL,
            **EXPERTS,
            "num_experts": 4,
            "num_shared_experts": 2,
            "attention_bias": True,
        },
    ),
    "hy_v3_tied": (
        "HYV3",
        {
            **SMALL,
            **EXPERTS,
            "num_experts": 4,
            "num_key_value_heads": 1,
            "mlp_bias": True,
            "mlp_layer_types": ["sparse", "dense"],
            "tie_word_embeddings": True,
        },
    ),
}
GOLDEN = {
    "glm4_moe": dict(dtype="bfloat16"),
    "solar_open": dict(dtype="bfloat16"),
    "exaone_moe": dict(dtype="bfloat16"),
    "hy_v3": dict(dtype="bfloat16"),
}
# arXiv:2508.06471 table 1, whose active parameters leave out embeddings; the names of K-EXAONE and
# Solar Open, and the card of Hy3.
PUBLISHED = {
    "glm-4.5-air": (106, None),
    "glm-4.5": (355, None),
    "glm-4.6": (355, None),
    "glm-4.7": (355, None),
    "solar-open-100b": (102.6, 12),
    "k-exaone-236b-a23b": (236, 23),
    "hy3-preview": (295, 21),
}
