"""Shapes of the benchmarks' models, as Hugging Face configs have them."""

DENSE = dict(
    vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
    num_attention_heads=8, num_key_value_heads=8, head_dim=64, max_position_embeddings=2048,
    tie_word_embeddings=True,
)  # fmt: skip
"""A Llama of 34M parameters."""


def moe(experts: int) -> dict:
    """A Qwen3-MoE of 4 layers, top-2 of so many experts."""
    return dict(
        vocab_size=8192, hidden_size=256, intermediate_size=512, moe_intermediate_size=256,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, head_dim=64,
        num_experts=experts, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
