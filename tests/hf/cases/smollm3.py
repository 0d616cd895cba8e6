"""SmolLM3."""

from tests.hf.cases.shared import SMALL, YARN, drop

PLAIN = {**drop(SMALL, "head_dim"), "pad_token_id": 0}  # the class has no head_dim
CASES = {
    "smollm3": ("SmolLM3", {**PLAIN, "num_hidden_layers": 3, "no_rope_layer_interval": 3}),
    "smollm3_window_bias_yarn": (
        "SmolLM3",
        {
            **PLAIN,
            "no_rope_layers": [1, 1],  # without positions no gradient reaches the bias of k
            "layer_types": ["full_attention", "sliding_attention"],
            "use_sliding_window": True,
            "sliding_window": 5,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": YARN,
        },
    ),
}
GOLDEN = {"smollm3": dict(dtype="bfloat16")}
# The model's card: 3.08B.
PUBLISHED = {"smollm3-3b": (3.075, None)}
