"""Gemma, Gemma 2 and Gemma 3."""

from tests.hf.cases.shared import SMALL

VISION = dict(
    model_type="siglip_vision_model",
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=16,
    patch_size=4,
)
CASES = {
    "gemma": ("Gemma", {**SMALL, "num_key_value_heads": 1}),
    "gemma_bias_untied": (
        "Gemma",
        {
            **SMALL,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0},
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "query_pre_attn_scalar": 13,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 20.0,
        },
    ),
    "gemma2_bias_full": (
        "Gemma2",
        {
            **SMALL,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 4,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 5,
            "query_pre_attn_scalar": 13,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma3_old_keys": (
        "Gemma3Text",
        {
            **SMALL,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "final_logit_softcapping": 20.0,
            "sliding_window": 4,
            "sliding_window_pattern": 2,
            "rope_theta": 5e5,
            "rope_local_base_freq": 2e3,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
    ),
    "gemma3_whole": (
        "Gemma3",
        {
            "text_config": {
                **SMALL,
                "sliding_window": 4,
                "sliding_window_pattern": 2,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 96,
            "attn_implementation": "eager",
        },
    ),
}
GOLDEN = {
    "gemma": dict(dtype="bfloat16"),
    "gemma2": dict(dtype="float32"),
    "gemma3_whole": dict(dtype="bfloat16"),
}
# arXiv:2403.08295 table 2, arXiv:2408.00118 table 2, arXiv:2503.19786 table 1, embeddings included;
# gemma-3-270m's card.
PUBLISHED = {
    "gemma-2b": (2.51, None),
    "gemma-7b": (8.54, None),
    "gemma-2-2b": (2.614, None),
    "gemma-2-9b": (9.242, None),
    "gemma-2-27b": (27.227, None),
    "gemma-3-270m": (0.27, None),
    "gemma-3-1b": (1.0, None),
    "gemma-3-4b": (3.884, None),
    "gemma-3-12b": (11.771, None),
    "gemma-3-27b": (27.016, None),
}
