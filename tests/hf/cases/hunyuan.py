"""Hunyuan dense."""

from tests.hf.cases.shared import SMALL

ALPHA = {"rope_type": "dynamic", "rope_theta": 10_000.0, "alpha": 50.0, "factor": 1.0}
CASES = {
    "hunyuan": ("HunYuanDenseV1", {**SMALL, "rope_parameters": ALPHA}),
    "hunyuan_bias_tied": (
        "HunYuanDenseV1",
        {
            **SMALL,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
        },
    ),
}
GOLDEN = {"hunyuan": dict(dtype="bfloat16")}
# The models' names, and the safetensors sizes of their repos.
PUBLISHED = {
    "hunyuan-0.5b": (0.539, None),
    "hunyuan-1.8b": (1.79, None),
    "hunyuan-7b": (7.50, None),
}
