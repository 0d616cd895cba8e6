"""Llama 4: the text part, and the whole with a tiny vision tower."""

from tests.hf.cases.shared import LLAMA3_ROPE, SMALL, drop

LLAMA4 = {
    **SMALL,
    "intermediate_size": 24,
    "intermediate_size_mlp": 44,
    "num_hidden_layers": 3,
    "num_local_experts": 4,
    "attention_chunk_size": 7,
    "floor_scale": 5,
    "attn_scale": 0.7,
    "rope_parameters": LLAMA3_ROPE,
}
SCOUT = {**LLAMA4, "no_rope_layer_interval": 3}
MAVERICK = {
    **LLAMA4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 0, 0, 1],
    "layer_types": ["chunked_attention", "full_attention"] * 2,
    "use_qk_norm": False,
    "attn_temperature_tuning": False,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
WHOLE = {
    "attn_implementation": "eager",
    "text_config": {
        **drop(SCOUT, "attn_implementation"),
        "num_hidden_layers": 2,
        "no_rope_layers": [1, 1],  # without positions a bias of k has no gradient
        "attention_bias": True,
        "interleave_moe_layer_step": 2,
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 2,
        "vision_output_dim": 12,
        "projector_input_dim": 12,
        "projector_output_dim": 12,
    },
    "image_token_index": 96,
}

CASES = {
    "llama4_scout": ("Llama4Text", SCOUT),
    "llama4_maverick": ("Llama4Text", MAVERICK),
    "llama4_whole": ("Llama4", WHOLE),
}
GOLDEN = {"llama4_scout": dict(dtype="bfloat16")}
# Meta's announcement of 5 April 2025: 109B and 400B parameters, 17B active.
PUBLISHED = {"llama-4-scout": (109, 17), "llama-4-maverick": (400, 17)}
