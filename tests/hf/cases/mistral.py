"""Mistral, Ministral and Ministral 3, and their text parts inside of mistral3."""

from tests.hf.cases.shared import LATENT, SMALL, YARN

VISION = dict(
    model_type="pixtral",
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=1,
    num_attention_heads=2,
    head_dim=8,
    image_size=16,
    patch_size=4,
)
TEMPERED = {**YARN, "llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0}
CASES = {
    "mistral": ("Mistral", {**SMALL, "num_hidden_layers": 3, "sliding_window": 7}),
    "mistral_tied_full": (
        "Mistral",
        {
            **SMALL,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "sliding_window": None,
            "hidden_act": "gelu",
        },
    ),
    "ministral": (
        "Ministral",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "ministral3": (
        "Ministral3",
        {
            **SMALL,
            "pad_token_id": 0,  # its embedding gets no gradient; 11 is the class's default
            "rope_parameters": {**TEMPERED, "original_max_position_embeddings": 8},
            "num_hidden_layers": 3,
        },
    ),
    "ministral3_tied_window": (
        "Ministral3",
        {
            **SMALL,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "sliding_window": 9,
            "rope_parameters": {**TEMPERED, "beta_fast": 4.0, "mscale_all_dim": 0.0},
        },
    ),
    "mistral3_whole": (
        "Mistral3",
        {
            "text_config": {
                **SMALL,
                "model_type": "ministral3",
                "pad_token_id": 0,  # its embedding gets no gradient; 11 is the class's default
                "rope_parameters": {**TEMPERED, "original_max_position_embeddings": 8},
            },
            "vision_config": VISION,
            "image_token_index": 96,
            "tie_word_embeddings": False,
            "attn_implementation": "eager",
        },
    ),
    "mistral4_whole": (
        "Mistral3",
        {
            "text_config": {
                **LATENT,
                "model_type": "mistral4",
                "pad_token_id": 0,
                "n_group": 2,
                "topk_group": 1,
                "routed_scaling_factor": 1.5,
                "rope_parameters": {**TEMPERED, "original_max_position_embeddings": 8},
            },
            "vision_config": VISION,
            "image_token_index": 96,
            "tie_word_embeddings": False,
            "attn_implementation": "eager",
        },
    ),
}
GOLDEN = {
    "mistral4_whole": dict(dtype="bfloat16"),
    "mistral": dict(dtype="bfloat16"),
    "ministral3": dict(dtype="float32"),
}
# arXiv:2310.06825 and the safetensors sizes of the repos; the blog posts name 12B, 22B, 24B, 123B;
# Ministral 3's cards (language models of 3.4B, 8.4B, 13.5B), Devstral 2's (24B, 123B).
# Mistral Small 4's: 119B, 6.5B of them active.
PUBLISHED = {
    "mistral-small-4-119b": (119, 6.5),
    "mistral-7b-v0.1": (7.242, None),
    "mistral-7b-v0.2": (7.242, None),
    "mistral-7b-v0.3": (7.248, None),
    "mistral-nemo": (12.25, None),
    "mistral-small-2409": (22.25, None),
    "mistral-small-2501": (23.57, None),
    "mistral-small-3.1-24b": (23.57, None),
    "mistral-large-2407": (122.6, None),
    "mistral-large-2411": (122.6, None),
    "ministral-8b-2410": (8.02, None),
    "ministral-3-3b": (3.4, None),
    "ministral-3-8b": (8.4, None),
    "ministral-3-14b": (13.5, None),
    "devstral-small-2-24b": (24.0, None),
    "devstral-2-123b": (123.0, None),
}
