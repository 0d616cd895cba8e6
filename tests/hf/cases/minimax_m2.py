"""MiniMax-M2."""

from tests.hf.cases.mixtral import MOE
from tests.hf.cases.shared import SMALL

CASES = {
    "minimax_m2": (
        "MiniMaxM2",
        {
            **SMALL,
            **MOE,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.6,
            },
        },
    ),
    "minimax_m2_tied": (
        "MiniMaxM2",
        {**SMALL, **MOE, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
}  # fmt: skip
GOLDEN = {"minimax_m2": dict(dtype="bfloat16")}
# The size of the files on the hub; 10 billion active leave out embeddings and head.
PUBLISHED = {f"minimax-{name}": (229, None) for name in ("m2", "m2.1", "m2.5", "m2.7")}
