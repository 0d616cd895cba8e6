"""DeepSeek-V3 and Kimi K2."""

from tests.hf.cases.shared import LATENT, YARN

MLA = {**LATENT, "rms_norm_eps": 1e-5}

CASES = {
    "deepseek_v3_yarn": (
        "DeepseekV3",
        {
            **MLA,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "attention_bias": True,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v3_full_q": (
        "DeepseekV3",
        {
            **MLA,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
        },
    ),
    "kimi_k2": (
        "DeepseekV3",
        {
            **MLA,
            "n_routed_experts": 12,
            "num_experts_per_tok": 3,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.827,
            "rope_parameters": {
                **YARN,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 1.0,
                "beta_slow": 1.0,
            },
        },
    ),
    "kimi_k25_whole": (
        "Kimi_K25",
        {
            "text_config": {**MLA, "n_group": 1, "topk_group": 1, "num_hidden_layers": 2},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 20,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "pos_emb_height": 4,
                "pos_emb_width": 4,
            },
            "projection_hidden_size": 16,
            "image_token_id": 97,  # beyond the vocabulary: text must not hold it
            "video_token_id": 98,
            "tie_word_embeddings": False,
            "attn_implementation": "eager",
        },
    ),
    "deepseek_v3_half_rope": (
        "DeepseekV3",
        {
            **MLA,
            "rope_interleave": False,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 0,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.5},
        },
    ),
}
GOLDEN = {
    "deepseek_v3_yarn": dict(dtype="bfloat16", max_shard_size="40KB"),
    "deepseek_v3_full_q": dict(dtype="float32"),
    "kimi_k25_whole": dict(dtype="bfloat16"),
}
# arXiv:2412.19437 (671B, 37B), arXiv:2507.20534, Moonlight's card.
PUBLISHED = {
    "deepseek-v3": (671, 37),
    "deepseek-v3-0324": (671, 37),
    "deepseek-r1": (671, 37),
    "deepseek-r1-0528": (671, 37),
    "deepseek-v3.1": (671, 37),
    "deepseek-v3.1-terminus": (671, 37),
    "moonlight-16b-a3b": (16, 3),
    "kimi-k2": (1000, 32),
    "kimi-k2-0905": (1000, 32),
    "kimi-k2-thinking": (1000, 32),
    "kimi-k2.5": (1000, 32),
    "kimi-k2.6": (1000, 32),
    "kimi-k2.7-code": (1000, 32),
}
