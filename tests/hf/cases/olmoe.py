"""OLMoE."""

from tests.hf.cases.shared import EXPERTS, SMALL, drop

BASE = {
    **drop(SMALL, "head_dim"),
    **drop(EXPERTS, "moe_intermediate_size"),
    "num_experts": 4,
}

CASES = {
    "olmoe": ("Olmoe", {**BASE, "clip_qkv": 0.8}),
    "olmoe_tied": (
        "Olmoe",
        {**BASE, "norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True},
    ),
}
GOLDEN = {"olmoe": dict(dtype="float32")}
# arXiv:2409.02060 table 1.
PUBLISHED = {"olmoe-1b-7b": (6.9, 1.3)}
