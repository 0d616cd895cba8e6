"""dots.llm1."""

from tests.hf.cases.shared import EXPERTS, SMALL, drop

CASES = {
    "dots1": (
        "Dots1",
        {
            **drop(SMALL, "head_dim"),  # the class has no head_dim
            **EXPERTS,
            "num_hidden_layers": 3,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "sliding_window": 5,
            "max_window_layers": 2,
            "attention_bias": True,
        },
    ),
}
GOLDEN = {"dots1": dict(dtype="bfloat16")}
PUBLISHED = {"dots.llm1": (142, 14)}  # arXiv:2506.05767
