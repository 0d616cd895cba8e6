"""Llama and models of its architecture."""

from tests.hf.cases.shared import LLAMA3_ROPE, SMALL, YARN, drop

CASES = {
    "llama": ("Llama", SMALL),
    "llama_tied_llama3_bias": (
        "Llama",
        {
            **SMALL,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": LLAMA3_ROPE,
            "rms_norm_eps": 1e-5,
        },
    ),
    "llama_mha": ("Llama", {**drop(SMALL, "head_dim"), "num_key_value_heads": 4}),
    "llama_mqa_gelu": (
        "Llama",
        {**SMALL, "num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "llama_linear": (
        "Llama",
        {
            **SMALL,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0},
        },
    ),
    "llama_yarn": ("Llama", {**SMALL, "rope_parameters": YARN}),
    "llama_yarn_factor": (
        "Llama",
        {
            **SMALL,
            "rope_parameters": {
                **YARN,
                "attention_factor": 1.3,
                "truncate": False,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
            },
        },
    ),
}
GOLDEN = {
    "llama": dict(dtype="float32"),
    "llama_tied_llama3_bias": dict(dtype="float16"),
}
# Llama 2 arXiv:2307.09288 and the safetensors sizes of its repos, Llama 3 arXiv:2407.21783 table 3
# and its cards (8.03B, 70.6B, 1.23B, 3.21B), Yi arXiv:2403.04652, SmolLM2's cards.
PUBLISHED = {
    "llama-2-7b": (6.74, None),
    "llama-2-13b": (13.02, None),
    "llama-2-70b": (68.98, None),
    "llama-3-8b": (8.03, None),
    "llama-3-70b": (70.6, None),
    "llama-3.1-8b": (8.03, None),
    "llama-3.1-70b": (70.6, None),
    "llama-3.1-405b": (405.9, None),
    "llama-3.2-1b": (1.24, None),
    "llama-3.2-3b": (3.21, None),
    "llama-3.3-70b": (70.6, None),
    "deepseek-r1-distill-llama-8b": (8.03, None),
    "deepseek-r1-distill-llama-70b": (70.6, None),
    "smollm2-135m": (0.1345, None),
    "smollm2-360m": (0.3618, None),
    "smollm2-1.7b": (1.711, None),
    "yi-1.5-6b": (6.06, None),
    "yi-1.5-9b": (8.83, None),
    "yi-1.5-34b": (34.4, None),
    "yi-6b": (6.06, None),
    "yi-9b": (8.83, None),
    "yi-34b": (34.4, None),
}
