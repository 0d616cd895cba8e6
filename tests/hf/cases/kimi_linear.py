"""Kimi Linear."""

from tests.hf.cases.shared import EXPERTS, SMALL, drop

KIMI = dict(
    drop(SMALL, "head_dim", "max_position_embeddings"),
    **EXPERTS,
    max_position_embeddings=128,
    num_key_value_heads=4,
    pad_token_id=0,
    num_local_experts=4,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=10,
    linear_head_dim=24,
    linear_num_heads=2,
    linear_conv_kernel_dim=3,
    num_hidden_layers=3,
    layer_types=["linear_attention", "linear_attention", "full_attention"],
    rms_norm_eps=1e-2,  # what rounding does to small outputs is not the subject
)
CASES = {
    "kimi_linear": ("KimiLinear", KIMI),
    "kimi_linear_groups": (
        "KimiLinear",
        {
            **KIMI,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "linear_attention"],
            "mlp_layer_types": ["sparse", "dense"],
            "q_lora_rank": 20,
            "num_local_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
        },
    ),
}
GOLDEN = {"kimi_linear": dict(dtype="bfloat16")}
PUBLISHED = {"kimi-linear-48b-a3b": (48, None)}  # arXiv:2510.26692 section 5
