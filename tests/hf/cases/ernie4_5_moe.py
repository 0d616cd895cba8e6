"""ERNIE 4.5, mixture of experts."""

from tests.hf.cases.shared import EXPERTS, SMALL, drop

MOE = dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=24, pad_token_id=0)

CASES = {
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        {
            **SMALL,
            **drop(EXPERTS, "moe_intermediate_size", "num_experts_per_tok"),
            **MOE,
            "num_hidden_layers": 3,
            "moe_layer_end_index": 1,
            "tie_word_embeddings": True,
        },
    ),
    "ernie4_5_moe_bias": (
        "Ernie4_5_Moe",
        {
            **SMALL,
            **drop(EXPERTS, "moe_intermediate_size", "num_experts_per_tok"),
            **MOE,
            "num_key_value_heads": 1,
            "moe_layer_start_index": 0,
            "moe_layer_interval": 2,
            "moe_num_shared_experts": 1,
            "use_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "ernie4_5_moe_unshared": (
        "Ernie4_5_Moe",
        {
            **drop(SMALL, "head_dim"),
            **drop(EXPERTS, "moe_intermediate_size", "num_experts_per_tok"),
            **MOE,
            "moe_layer_start_index": 0,
            "moe_num_shared_experts": 0,
            "tie_word_embeddings": False,
        },
    ),
}
GOLDEN = {"ernie4_5_moe": dict(dtype="bfloat16")}
# The names of the models; 3 billion active of the smaller one leave out embeddings.
PUBLISHED = {"ernie-4.5-21b-a3b": (21.8, None), "ernie-4.5-300b-a47b": (300, 47)}
