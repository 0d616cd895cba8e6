"""Mixtral."""

from tests.hf.cases.shared import SMALL

MOE = dict(num_local_experts=4, num_experts_per_tok=2, experts_implementation="eager")

CASES = {
    "mixtral": ("Mixtral", {**SMALL, **MOE}),
    "mixtral_window_tied": (
        "Mixtral",
        {
            **SMALL,
            **MOE,
            "num_key_value_heads": 1,
            "head_dim": None,
            "sliding_window": 5,
            "tie_word_embeddings": True,
        },
    ),
}
GOLDEN = {"mixtral": dict(dtype="bfloat16")}
# arXiv:2401.04088 (47B, 13B), Mistral's announcement of 8x22B (141B, 39B).
PUBLISHED = {"mixtral-8x7b": (46.7, 12.9), "mixtral-8x22b": (141, 39)}
