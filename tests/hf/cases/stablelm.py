"""StableLM."""

from tests.hf.cases.shared import SMALL, drop

CASES = {
    "stablelm": (
        "StableLm",
        {
            **drop(SMALL, "head_dim"),  # the class has no head_dim
            "num_hidden_layers": 3,
            "use_qkv_bias": True,
            "partial_rotary_factor": 0.5,
        },
    ),
}
GOLDEN = {"stablelm": dict(dtype="bfloat16")}
# The models' cards.
PUBLISHED = {"stablelm-3b-4e1t": (2.795, None), "stablelm-2-1.6b": (1.644, None)}
