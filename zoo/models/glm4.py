"""GLM-4-0414 (arXiv:2406.12793): 9B, 32B.

Differs from Llama: norms on both sides of attention and of the MLP, rotation of neighbours in the
first half of each head, biases on q, k and v, gate and up one tensor on disk.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Placement, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import read_rope
from zoo.hf.table import Row, Same
from zoo.models import tables
from zoo.models.family import Family
from zoo.models.parts import attention, common, decoder, dense, head_dim, heads
from zoo.models.tables import IN_LAYER

DEFAULTS = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 0.5,
}
NORMS = (
    Row(IN_LAYER + "input_layernorm.weight", "attn_norm/scale", Same()),
    Row(IN_LAYER + "post_self_attn_layernorm.weight", "attn_post_norm/scale", Same()),
    Row(IN_LAYER + "post_attention_layernorm.weight", "ffn_norm/scale", Same()),
    Row(IN_LAYER + "post_mlp_layernorm.weight", "ffn_post_norm/scale", Same()),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type glm4."""
    return read(Keys(hf, DEFAULTS), "sandwich")


def read(keys: Keys, placement: Placement) -> Config:
    """Reads a config of GLM-4, with norms where the family has them."""
    norm = Norm(keys.number("rms_norm_eps"))
    mixer = attention(keys, rope=read_rope(keys, head_dim(keys), interleaved=True, partial=True))
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    layer = Layer(mixer, ffn, norm, placement)
    return decoder(keys, (layer,) * keys.integer("num_hidden_layers"), norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type glm4."""
    mixer = cfg.layers[0].mixer
    return {
        **common(cfg),
        **heads(mixer),
        "partial_rotary_factor": mixer.rope.dim / mixer.head_dim,
        **dense(cfg.layers[0].ffn),
    }


def _preset(layers, d, n, f, bias) -> Config:
    norm = Norm(1e-5)
    mixer = Attention(n, 2, 128, Rope(64, interleaved=True), qkv_bias=bias)
    stacks = stack_layers((Layer(mixer, MLP(f), norm, "sandwich"),) * layers)
    return Config(151552, d, stacks, norm, False, 32768, "glm4")


FAMILY = Family(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    table=(*tables.TOP, *NORMS, *tables.ATTENTION, *tables.FUSED_GATE_UP, *tables.FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "glm-4-9b-0414": _preset(40, 4096, 32, 13696, bias=True),
        "glm-4-32b-0414": _preset(61, 6144, 48, 23040, bias=False),
    },
)
