"""DeepSeek-V2: its own router, in groups or not, and V2-Lite's direct queries."""

from tests.hf.cases.shared import LATENT, YARN, drop

MLA = {**LATENT, "num_key_value_heads": None, "rms_norm_eps": 1e-5}

CASES = {
    "deepseek_v2": (
        "DeepseekV2",
        {
            **MLA,
            "n_group": 4,
            "topk_group": 2,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 4.0,
            "n_shared_experts": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek_v2_lite": (
        "DeepseekV2",
        {
            **drop(MLA, "first_k_dense_replace"),
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 3,
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
        },
    ),
}
GOLDEN = {"deepseek_v2": dict(dtype="bfloat16")}
# arXiv:2405.04434 (236B, 21B; Lite in appendix B: 15.7B; its 2.4B active leave the
# embeddings out), arXiv:2406.11931.
PUBLISHED = {
    "deepseek-v2": (236, 21),
    "deepseek-v2-lite": (15.7, None),
    "deepseek-coder-v2": (236, 21),
    "deepseek-coder-v2-lite": (15.7, None),
}
