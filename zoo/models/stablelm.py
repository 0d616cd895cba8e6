"""StableLM 3B-4E1T and StableLM 2 1.6B (Stability AI, arXiv:2402.17834), and their Zephyrs.

Differs from Llama: norms are LayerNorms, a quarter of each head rotates, and q, k and v may have
biases. Layers whose parts stand side by side (StableLM 2 12B) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, LayerNorm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import read_rope
from zoo.models import parts, tables
from zoo.models.family import Family

NAMES = {"rms_norm_eps": "layer_norm_eps", "attention_bias": "use_qkv_bias"}
DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type stablelm."""
    keys = Keys(hf, DEFAULTS, names=NAMES)
    size = keys.integer("hidden_size") // keys.integer("num_attention_heads")
    keys.agree("head_dim", size, "hidden_size and num_attention_heads")
    mixer = parts.attention(keys, rope=read_rope(keys, parts.head_dim(keys), partial=True))
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    return parts.uniform(keys, mixer, ffn, LayerNorm(keys.number("rms_norm_eps")))


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type stablelm."""
    mixer = cfg.layers[0].mixer
    keys = {
        **parts.common(cfg),
        **parts.heads(mixer),
        "partial_rotary_factor": mixer.rope.dim / mixer.head_dim,
        **parts.dense(cfg.layers[0].ffn),
    }
    return {NAMES.get(key, key): value for key, value in keys.items()}


def _preset(vocab, layers, d, f, bias) -> Config:
    norm, h = LayerNorm(1e-5), d // 32
    mixer = Attention(32, 32, h, Rope(h // 4), qkv_bias=bias)
    stacks = stack_layers((Layer(mixer, MLP(f), norm),) * layers)
    return Config(vocab, d, stacks, norm, False, 4096, "stablelm")


FAMILY = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    table=(*tables.LLAMA, *tables.NORM_BIASES),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "stablelm-3b-4e1t": _preset(50304, 32, 2560, 6912, bias=False),
        "stablelm-2-1.6b": _preset(100352, 24, 2048, 5632, bias=True),
    },
)
