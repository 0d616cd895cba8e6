"""ERNIE 4.5."""

from tests.hf.cases.shared import SMALL, YARN

CASES = {
    "ernie4_5": ("Ernie4_5", {**SMALL, "num_key_value_heads": 1}),
    "ernie4_5_bias_untied_yarn": (
        "Ernie4_5",
        {**SMALL, "use_bias": True, "tie_word_embeddings": False, "rope_parameters": YARN},
    ),
}
GOLDEN = {"ernie4_5": dict(dtype="bfloat16")}
# The model's card: 0.36B.
PUBLISHED = {"ernie-4.5-0.3b": (0.361, None)}
