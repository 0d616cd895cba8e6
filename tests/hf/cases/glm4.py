"""GLM-4 and GLM-4-0414."""

from tests.hf.cases.shared import SMALL

GLM4 = {**SMALL, "head_dim": 12, "pad_token_id": 0}
CASES = {
    "glm4": ("Glm4", {**GLM4, "rope_theta": 1e4}),
    "glm4_no_bias": (
        "Glm4",
        {
            **GLM4,
            "num_key_value_heads": 1,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0},
        },
    ),
}
CASES["glm"] = ("Glm", {**GLM4, "num_hidden_layers": 3})
GOLDEN = {"glm4": dict(dtype="bfloat16"), "glm": dict(dtype="bfloat16")}
# The sizes of the repositories' files.
PUBLISHED = {
    "glm-4-9b-chat": (9.4, None),
    "glm-4-9b-chat-1m": (9.48, None),
    "glm-4-9b-0414": (9.4, None),
    "glm-4-32b-0414": (32.57, None),
}
