"""EXAONE 4.0."""

from tests.hf.cases.shared import LLAMA3_ROPE, SMALL, drop

CASES = {
    "exaone4": (
        "Exaone4",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "sliding_window_pattern": 2,
            "rope_parameters": LLAMA3_ROPE,
        },
    ),
    "exaone4_full": (
        "Exaone4",
        {
            **drop(SMALL, "head_dim"),
            "sliding_window": None,
            "layer_types": ["full_attention"] * 2,
            "tie_word_embeddings": True,
        },
    ),
}
GOLDEN = {"exaone4": dict(dtype="bfloat16")}
# The models' cards: 1.28B, 32.0B.
PUBLISHED = {"exaone-4.0-1.2b": (1.28, None), "exaone-4.0-32b": (32.0, None)}
