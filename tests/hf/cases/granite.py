"""Granite, Granite SWA, Granite with experts and HyperCLOVA X."""

from tests.hf.cases.shared import SMALL, drop

MULTIPLIERS = dict(
    embedding_multiplier=6.0,
    logits_scaling=3.0,
    residual_multiplier=0.4,
    attention_multiplier=0.2,
)
PLAIN = drop(SMALL, "head_dim") | MULTIPLIERS  # Granite's classes have no head_dim
CASES = {
    "granite": ("Granite", {**PLAIN, "num_hidden_layers": 3, "tie_word_embeddings": True}),
    "granite_bias_untied": ("Granite", {**PLAIN, "attention_bias": True, "mlp_bias": True}),
    "granite_swa": (
        "GraniteSWA",
        {
            **PLAIN,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "layer_rope_theta": [0, 10_000.0, 500.0],
        },
    ),
    "granitemoe": (
        "GraniteMoe",
        {
            **PLAIN,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "experts_implementation": "eager",
        },
    ),
    "hyperclovax": ("HyperCLOVAX", {**SMALL, **MULTIPLIERS, "tie_word_embeddings": True}),
    "hyperclovax_pre_norms": (
        "HyperCLOVAX",
        {
            **SMALL,
            **MULTIPLIERS,
            "attention_multiplier": None,
            "use_post_norm": False,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
}
GOLDEN = {
    "granite": dict(dtype="bfloat16"),
    "granite_swa": dict(dtype="float32"),
    "granitemoe": dict(dtype="bfloat16"),
    "hyperclovax": dict(dtype="bfloat16"),
}
# Granite 3.3's and 4.1's cards, and the safetensors sizes of their repos.
PUBLISHED = {
    "hyperclovax-think-14b": (14.74, None),  # its card
    "granite-3.0-1b-a400m": (1.33, None),
    "granite-3.1-1b-a400m": (1.33, None),
    "granite-3.3-2b": (2.53, None),
    "granite-3.3-8b": (8.17, None),
    "granite-4.1-3b": (3.4, None),
    "granite-4.1-8b": (8.4, None),
    "granite-4.1-30b": (29.3, None),
    "granite-swash-2b": (2.14, None),  # our own count, to notice changes: the name says 2
}
