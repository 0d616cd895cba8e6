"""Seed-OSS 36B (ByteDance, 2025).

Differs from Llama: biases on q, k and v but not on o, and more heads than embed_dim / head_dim.
Its configs have dropout for training, which nothing here applies.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import parts, tables
from zoo.models.family import Family

DEFAULTS = {
    "vocab_size": 155136,
    "hidden_size": 4096,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 524288,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "attention_out_bias": False,
    "mlp_bias": False,
}
UNUSED = frozenset({"attention_dropout", "residual_dropout"})


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type seed_oss."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = Norm(keys.number("rms_norm_eps"))
    mixer = parts.attention(keys, keys["attention_out_bias"])
    ffn = MLP(keys.integer("intermediate_size"), keys.activation(), bool(keys["mlp_bias"]))
    return parts.uniform(keys, mixer, ffn, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type seed_oss."""
    layer = cfg.layers[0]
    return {
        **parts.common(cfg),
        **parts.heads(layer.mixer),
        **parts.dense(layer.ffn),
        "attention_out_bias": layer.mixer.o_bias,
        "mlp_bias": layer.ffn.bias,
        "residual_dropout": 0.0,
    }


def _preset(layers, d, n, k, f) -> Config:
    norm, mixer = Norm(1e-6), Attention(n, k, 128, Rope(128, 1e7), qkv_bias=True)
    stacks = stack_layers((Layer(mixer, MLP(f), norm),) * layers)
    return Config(155136, d, stacks, norm, False, 524288, "seed_oss")


FAMILY = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    table=tables.LLAMA,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"seed-oss-36b": _preset(64, 5120, 80, 8, 27648)},
)
