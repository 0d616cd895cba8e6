"""Sparse attention: DeepSeek-V3.2, and GLM-5 with shared choices. Fewer tokens chosen than seen.

Many heads, because torch leaves the order of ties open: keys that no head likes score exactly 0.
"""

from tests.hf.cases.shared import LATENT, YARN, drop

INDEX = dict(index_n_heads=16, index_head_dim=14, index_topk=5)

CASES = {
    "deepseek_v32": (
        "DeepseekV32",
        {
            **LATENT,
            **INDEX,
            "n_group": 4,
            "topk_group": 2,
            "attention_bias": True,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "glm_moe_dsa": (
        "GlmMoeDsa",
        {
            **drop(LATENT, "first_k_dense_replace"),
            **INDEX,
            "num_hidden_layers": 4,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "indexer_types": ["full", "shared", "full", "shared"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
}
GOLDEN = {"deepseek_v32": dict(dtype="bfloat16"), "glm_moe_dsa": dict(dtype="bfloat16")}
# arXiv:2512.02556 (671B as V3, indexers beside), the cards of GLM-5 (744B).
PUBLISHED = {
    "deepseek-v3.2": (671, None),
    "glm-5": (744, None),
    "glm-5.1": (744, None),
    "glm-5.2": (744, None),
}
