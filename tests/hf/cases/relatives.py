"""Relatives of Qwen and GLM: Kolibri 1, Laguna, MiMo-V2-Flash, and text parts of Qwen's VL."""

from tests.hf.cases.shared import EXPERTS, SMALL, drop

BASE = {**SMALL, **EXPERTS, "sliding_window": 5, "num_hidden_layers": 3}
KINDS = ["full_attention", "sliding_attention", "sliding_attention"]
VISION = dict(
    depth=1,
    hidden_size=16,
    intermediate_size=20,
    num_heads=2,
    out_hidden_size=32,
    patch_size=2,
    window_size=8,
    fullatt_block_indexes=[0],
)
QWEN2 = {
    "text_config": {
        **drop(SMALL, "head_dim", "attn_implementation"),
        "rope_parameters": {"rope_theta": 1e5, "mrope_section": [1, 2, 1]},
    },
    "image_token_id": 95,
    "video_token_id": 96,
    "attn_implementation": "eager",
}
DEEPSTACK = {
    **drop(VISION, "window_size", "fullatt_block_indexes"),
    "deepstack_visual_indexes": [0],
}

CASES = {
    "kolibri1": (
        "Kolibri1",
        {
            **drop(BASE, "intermediate_size"),
            "num_experts": 6,
            "shared_expert_intermediate_size": 20,
            "layer_types": KINDS,
            "norm_topk_prob": True,
        },
    ),
    "laguna": (
        "Laguna",
        {
            **BASE,
            "num_experts": 6,
            "shared_expert_intermediate_size": 20,
            "layer_types": KINDS,
            "num_attention_heads_per_layer": [4, 6, 2],
            "moe_routed_scaling_factor": 2.5,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 1e5,
                    "factor": 8.0,
                    "original_max_position_embeddings": 16,
                    "partial_rotary_factor": 0.6,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "mimo_v2_flash": (
        "MiMoV2Flash",
        {
            **BASE,
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "v_head_dim": 6,
            "attention_bias": True,
            "layer_types": KINDS,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.4}
                for kind, theta in (("full_attention", 1e5), ("sliding_attention", 1e3))
            },
        },
    ),
    "qwen2_5_vl": ("Qwen2_5_VL", {**QWEN2, "vision_config": VISION}),
    "qwen2_vl": (
        "Qwen2VL",
        {
            **QWEN2,
            "vision_config": dict(depth=1, embed_dim=16, hidden_size=32, num_heads=2, patch_size=2),
        },
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            "text_config": {
                **drop(SMALL, "attn_implementation"),
                "rope_parameters": {
                    "rope_theta": 1e5,
                    "mrope_section": [1, 2, 2],
                    "mrope_interleaved": True,
                },
                "tie_word_embeddings": True,
            },
            "vision_config": DEEPSTACK,
            "tie_word_embeddings": True,
            "attn_implementation": "eager",
        },
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoe",
        {
            "text_config": {
                **drop(SMALL, "attn_implementation"),
                **drop(EXPERTS, "experts_implementation"),
                "num_experts": 6,
                "rope_parameters": {"rope_theta": 1e5, "mrope_section": [2, 1, 2]},
            },
            "vision_config": DEEPSTACK,
            "attn_implementation": "eager",
            "experts_implementation": "eager",
        },
    ),
}
GOLDEN = {"mimo_v2_flash": dict(dtype="bfloat16")}
# arXiv:2601.02780: 309B parameters, 15B of them active. Cards: Laguna XS.2; Kolibri 1, whose 3.46B
# active parameters leave out the embeddings. S 2.1 is our own count.
PUBLISHED = {
    "mimo-v2-flash": (309, 15),
    "laguna-xs.2": (33, 3),
    "laguna-s-2.1": (117.6, 8.45),
    "kolibri-1": (78, 3.79),
}
