"""Qwen3-Next and Qwen3.5: DeltaNets beside gated attention."""

from tests.hf.cases.shared import EXPERTS, SMALL

HYBRID = dict(
    SMALL,
    num_key_value_heads=1,
    head_dim=16,
    linear_conv_kernel_dim=3,
    linear_key_head_dim=16,
    linear_value_head_dim=10,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    layer_types=["linear_attention", "full_attention"],
)
SHARED = dict(EXPERTS, num_experts=4, shared_expert_intermediate_size=20)
MROPE = dict(mrope_section=[2, 1, 1], mrope_interleaved=True)
VISION = dict(
    depth=1, hidden_size=16, intermediate_size=20, num_heads=2, patch_size=4,
    temporal_patch_size=1, spatial_merge_size=1, out_hidden_size=32, num_position_embeddings=16,
)  # fmt: skip
CASES = {
    "qwen3_next": ("Qwen3Next", {**HYBRID, **SHARED}),
    "qwen3_next_interval": (
        "Qwen3Next",
        {
            **HYBRID,
            **SHARED,
            "num_hidden_layers": 3,
            "layer_types": None,
            "full_attention_interval": 3,
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
            "linear_num_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5,
            },
        },
    ),
    "qwen3_5": (
        "Qwen3_5Text",
        {
            **HYBRID,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, **MROPE},
        },
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeText",
        {**HYBRID, **SHARED, "num_experts": 5, "rms_norm_eps": 1e-4},
    ),
    "qwen3_5_whole": (
        "Qwen3_5",
        {"text_config": HYBRID, "vision_config": VISION, "attn_implementation": "eager"},
    ),
}  # fmt: skip
GOLDEN = {
    "qwen3_next": dict(dtype="bfloat16"),
    "qwen3_5_whole": dict(dtype="float32"),
    "qwen3_5_moe": dict(dtype="bfloat16"),
}
# The models' names; the cards say no more. Qwen3.5's count neither vision nor what predicts further
# tokens. 0.8b, 2b and 4b are not published so exactly: these are our own counts, to notice changes.
PUBLISHED = {
    "qwen3-next-80b-a3b": (80, None),
    "qwen3.5-0.8b": (0.75, None),
    "qwen3.5-2b": (1.9, None),
    "qwen3.5-4b": (4.2, None),
    "qwen3.5-9b": (9, None),
    "qwen3.5-27b": (27, None),
    "qwen3.6-27b": (27, None),
    "qwen3.5-35b-a3b": (35, None),
    "qwen3.6-35b-a3b": (35, None),
    "qwen3.5-122b-a10b": (122, None),
    "qwen3.5-397b-a17b": (397, None),
}
