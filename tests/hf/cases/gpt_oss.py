"""gpt-oss."""

from tests.hf.cases.shared import SMALL, YARN

GPT_OSS = {
    **SMALL,
    "intermediate_size": 24,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "sliding_window": 5,
    "experts_implementation": "eager",
}

CASES = {
    "gpt_oss": ("GptOss", {**GPT_OSS, "rope_parameters": {**YARN, "truncate": False}}),
    "gpt_oss_layer_types": (
        "GptOss",
        {
            **GPT_OSS,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "attention_bias": False,
            "tie_word_embeddings": True,
            "swiglu_alpha": 1.2,
            "swiglu_limit": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}
GOLDEN = {"gpt_oss": dict(dtype="bfloat16")}
# arXiv:2508.10925 table 1; its counts of active parameters leave the embeddings out.
PUBLISHED = {"gpt-oss-20b": (20.91, None), "gpt-oss-120b": (116.83, None)}
