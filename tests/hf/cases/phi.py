"""Phi-3, Phi-4, Phi-4-mini, Phi-3.5-MoE and Phi-mini-MoE."""

from tests.hf.cases.shared import SMALL, drop

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.5, 4.0],
}

PHI = dict(**SMALL, pad_token_id=0)
MOE = dict(**PHI, experts_implementation="eager")
CASES = {
    "phi3": ("Phi3", {**PHI, "sliding_window": 5, "rope_theta": 2.5e5}),
    "phi3_long": (  # all positions of the tests are beyond the original length
        "Phi3",
        {
            **drop(PHI, "head_dim"),
            "original_max_position_embeddings": 4,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75},
            "tie_word_embeddings": True,
        },
    ),
    "phi3_crossing": (  # greedy text crosses the original length
        "Phi3",
        {
            **drop(PHI, "head_dim"),
            "num_key_value_heads": 1,
            "original_max_position_embeddings": 40,
            "rope_scaling": {**drop(LONGROPE, "rope_type"), "type": "longrope"},
            "partial_rotary_factor": 0.75,
        },
    ),
    "phimoe": (
        "Phimoe",
        {
            **MOE,
            "num_local_experts": 4,
            "attention_bias": True,
            "lm_head_bias": True,
            "router_jitter_noise": 0.2,
            "sliding_window": 5,
        },
    ),
    "phimoe_long": (
        "Phimoe",
        {
            **drop(MOE, "head_dim"),
            "num_local_experts": 6,
            "router_jitter_noise": 0.1,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.3, 1.4],
                "long_factor": [1.5, 2.5, 4.0, 5.0],
                "short_mscale": 1.1,
                "long_mscale": 1.3,
                "original_max_position_embeddings": 40,
            },
        },
    ),
}
GOLDEN = {"phi3_long": dict(dtype="bfloat16"), "phimoe": dict(dtype="bfloat16")}
# Cards of the models, and the sizes of their files; arXiv:2506.18349 has Phi-mini-MoE.
PUBLISHED = {
    "phi-3-mini-4k": (3.82, None),
    "phi-3-mini-128k": (3.82, None),
    "phi-3.5-mini": (3.82, None),
    "phi-3.5-moe": (41.9, 6.6),
    "phi-mini-moe": (7.6, 2.4),
    "phi-4": (14.66, None),
    "phi-4-reasoning": (14.66, None),
    "phi-4-mini": (3.836, None),
}
