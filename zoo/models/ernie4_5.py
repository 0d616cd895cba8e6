"""ERNIE 4.5 dense, 0.3B (ERNIE 4.5 technical report, 2025).

Differs from Llama: the rotation pairs neighbours and is computed in float32, one key puts biases on
every projection, and output and embeddings are tied.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import read_rope
from zoo.models import parts, tables
from zoo.models.family import Family

DEFAULTS = {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "use_bias": False,
    "attention_dropout": 0.0,
    "rope_theta": 5e5,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type ernie4_5."""
    keys = Keys(hf, DEFAULTS)
    norm, bias = Norm(keys.number("rms_norm_eps")), bool(keys["use_bias"])
    rope = read_rope(keys, parts.head_dim(keys), interleaved=True, wide=True)
    mixer = parts.attention(keys, bias, qkv_bias=bias, rope=rope)
    ffn = MLP(keys.integer("intermediate_size"), keys.activation(), bias)
    return parts.uniform(keys, mixer, ffn, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type ernie4_5."""
    layer = cfg.layers[0]
    return {
        **parts.common(cfg),
        **parts.heads(layer.mixer, bias="use_bias"),
        **parts.dense(layer.ffn),
    }


def _preset(layers, d, n, k, f) -> Config:
    norm, rope = Norm(1e-5), Rope(128, 5e5, interleaved=True, wide=True)
    stacks = stack_layers((Layer(Attention(n, k, 128, rope), MLP(f), norm),) * layers)
    return Config(103424, d, stacks, norm, True, 131072, "ernie4_5")


FAMILY = Family(
    model_type="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    table=tables.LLAMA,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"ernie-4.5-0.3b": _preset(18, 1024, 16, 2, 3072)},
)
