"""A small dense model, Qwen3's layers (grouped queries, normalised q and k), on the same text.

Command   python train.py --config=configs/dense.py
"""

from ml_collections import ConfigDict

from zoo.training.settings import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.model = ConfigDict(
        dict(
            model_type="qwen3",
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=512,
            rope_theta=10000.0,
            tie_word_embeddings=True,
        )
    )
    config.data.window = 256
    config.data.batch = 8
    config.steps = 900
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 60
    config.evaluation.every = 100
    config.checkpoint.every = 200
    config.samples.prompts = ("import os\n", "def main(", "class ", '"""Return the ')
    return config
