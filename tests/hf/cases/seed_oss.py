"""Seed-OSS."""

from tests.hf.cases.shared import SMALL

CASES = {
    "seed_oss": ("SeedOss", {**SMALL, "num_hidden_layers": 3}),
    "seed_oss_other_biases": (
        "SeedOss",
        {
            **SMALL,
            "attention_bias": False,
            "attention_out_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
        },
    ),
}
GOLDEN = {"seed_oss": dict(dtype="bfloat16")}
# The model's card: 36B; the safetensors size of its repo.
PUBLISHED = {"seed-oss-36b": (36.15, None)}
