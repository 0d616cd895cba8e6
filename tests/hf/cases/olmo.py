"""OLMo 2 and Olmo 3."""

from tests.hf.cases.shared import SMALL, YARN, drop

CASES = {
    "olmo2": ("Olmo2", {**SMALL, "num_key_value_heads": 1, "rope_theta": 5e5}),
    "olmo2_bias": (
        "Olmo2",
        {
            **drop(SMALL, "head_dim", "num_key_value_heads"),
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "olmo3": (
        "Olmo3",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 5,
            "rope_scaling": {**drop(YARN, "rope_theta"), "attention_factor": 1.2},
        },
    ),
    "olmo3_every_fourth": ("Olmo3", {**SMALL, "num_hidden_layers": 4, "sliding_window": 4}),
}
GOLDEN = {"olmo2": dict(dtype="float32"), "olmo3": dict(dtype="bfloat16")}
# Cards of the models, and the sizes of their files.
PUBLISHED = {
    "olmo-2-1b": (1.485, None),
    "olmo-2-7b": (7.3, None),
    "olmo-2-13b": (13.7, None),
    "olmo-2-32b": (32.23, None),
    "olmo-3-7b": (7.3, None),
    "olmo-3-32b": (32.23, None),
}
