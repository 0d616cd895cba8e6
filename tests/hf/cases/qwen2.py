"""Qwen2 and models of its architecture."""

from tests.hf.cases.shared import SMALL, YARN, drop

HEADS = drop(SMALL, "head_dim")  # the class has no head_dim of its own
CASES = {
    "qwen2": ("Qwen2", {**HEADS, "num_hidden_layers": 3, "num_key_value_heads": 1}),
    "qwen2_tied_window_yarn": (
        "Qwen2",
        {
            **HEADS,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "rms_norm_eps": 1e-5,
            "rope_parameters": YARN,
        },
    ),
}
GOLDEN = {"qwen2": dict(dtype="bfloat16")}
# Qwen2.5's cards (0.49B, 1.54B, 3.09B, 7.61B, 14.7B, 32.5B, 72.7B), whose sizes Qwen2 has too;
# the safetensors sizes of DeepSeek-R1-Distill-Qwen (1.78B, 7.62B, 14.8B, 32.8B) and QwQ (32.8B).
PUBLISHED = {
    "qwen2-0.5b": (0.494, None),
    "qwen2-1.5b": (1.544, None),
    "qwen2-7b": (7.616, None),
    "qwen2-72b": (72.71, None),
    "qwen2.5-0.5b": (0.494, None),
    "qwen2.5-1.5b": (1.544, None),
    "qwen2.5-3b": (3.086, None),
    "qwen2.5-7b": (7.616, None),
    "qwen2.5-14b": (14.77, None),
    "qwen2.5-32b": (32.76, None),
    "qwen2.5-72b": (72.71, None),
    "qwq-32b": (32.76, None),
    "deepseek-r1-distill-qwen-1.5b": (1.777, None),
    "deepseek-r1-distill-qwen-7b": (7.616, None),
    "deepseek-r1-distill-qwen-14b": (14.77, None),
    "deepseek-r1-distill-qwen-32b": (32.76, None),
}
