"""A small DeepSeek-V3-style mixture of experts, trained on Python's own standard library.

Command   python train.py --config=configs/quickstart.py
          python train.py --config=configs/quickstart.py:smoke    # 20 steps, to see that it works
Hardware  two CPU cores, 3 GB of memory; any accelerator that JAX finds is used instead
Model     8.8M parameters, 2.2M of them active per token: latent attention, one dense layer, then
          four of 32 experts, of which each token takes two and a shared one
Time      8 min 53 s from an empty cache, at 4 400 tokens/s (two cores of an AMD EPYC)
Result    validation loss 4.083, perplexity 59.3, 1.723 bits per byte after 1.8M of the 3.4M
          tokens of Python 3.11's library (corpus sha256 8637e2ba)
"""

from ml_collections import ConfigDict

from zoo.training.settings import defaults


def get_config(length: str = "full") -> ConfigDict:
    config = defaults()
    config.model = ConfigDict(
        dict(
            model_type="deepseek_v3",
            vocab_size=4096,
            hidden_size=192,
            intermediate_size=512,
            moe_intermediate_size=96,
            num_hidden_layers=5,
            first_k_dense_replace=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            q_lora_rank=96,
            kv_lora_rank=48,
            qk_nope_head_dim=32,
            qk_rope_head_dim=16,
            v_head_dim=32,
            n_routed_experts=32,
            num_experts_per_tok=2,
            n_shared_experts=1,
            n_group=4,
            topk_group=2,
            norm_topk_prob=True,
            routed_scaling_factor=1.0,
            scoring_func="sigmoid",
            topk_method="noaux_tc",
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
    config.optimizer.final = 0.05
    config.balance.bias_rate = 0.01
    config.evaluation.every = config.checkpoint.every = 150
    config.evaluation.batches = None  # All of the split.
    config.samples.prompts = ("import os\n", "def main(", "class ", '"""Return the ')
    if length == "smoke":
        config.steps = 20
        config.optimizer.warmup = 5
        config.evaluation.every = config.checkpoint.every = 10
        config.evaluation.batches = 2
    elif length != "full":
        raise ValueError(f"quickstart.py:{length} is neither full nor smoke")
    return config
