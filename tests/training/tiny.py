"""A run of a second: a two-layer DeepSeek-V3 on the committed corpus. Also a config file."""

from pathlib import Path

from ml_collections import ConfigDict

from zoo.training.settings import defaults

CORPUS = Path(__file__).parents[1] / "data/corpus"


def get_config(mesh: str | None = None) -> ConfigDict:
    config = defaults()
    config.model = ConfigDict(
        dict(
            model_type="deepseek_v3",
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            moe_intermediate_size=16,
            num_hidden_layers=2,
            first_k_dense_replace=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
            n_group=2,
            topk_group=1,
            max_position_embeddings=128,
        )
    )
    data = config.data
    data.source, data.files = "glob", (str(CORPUS / "**/*.*"),)
    data.validation_fraction, data.test_fraction = 0.25, 0.15
    data.vocab_size, data.window, data.batch = 400, 24, 4
    config.steps = 48
    config.mesh = mesh
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 4
    config.evaluation.every = 16
    config.evaluation.batches = 2
    config.checkpoint.every = 16
    return config
