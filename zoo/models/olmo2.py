"""OLMo 2 (arXiv:2501.00656): 1B, 7B, 13B, 32B.

Differs from Llama: no norms before attention and the MLP but behind them, before they are added;
q and k are normalised over all heads of a token together, before the rotation; norms and rotation
multiply in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import read_rope
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.parts import attention, common, decoder, dense, head_dim, heads

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type olmo2."""
    keys = Keys(hf, DEFAULTS)
    norm, rope = olmo_norm(keys.number("rms_norm_eps")), read_rope(keys, head_dim(keys), wide=True)
    layers = (olmo_layer(keys, norm, rope),) * keys.integer("num_hidden_layers")
    return decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type olmo2."""
    mixer = cfg.layers[0].mixer
    return {
        **common(cfg),
        **heads(mixer),
        **dense(cfg.layers[0].ffn),
    }


def olmo_norm(eps: float = 1e-6) -> Norm:
    """The norm of OLMo 2 and 3."""
    return Norm(float(eps), wide=True)


def olmo_layer(keys: Keys, norm: Norm, rope: Rope, window: int | None = None) -> Layer:
    """A layer of OLMo 2 and 3."""
    mixer = attention(
        keys, o_bias=keys["attention_bias"], qk_norm=norm, norm_heads=True, rope=rope, window=window
    )
    return Layer(mixer, MLP(keys.integer("intermediate_size"), keys.activation()), norm, "post")


def _preset(layers, d, n, k, f) -> Config:
    norm, rope = olmo_norm(), Rope(128, 5e5, wide=True)
    mixer = Attention(n, k, 128, rope, qk_norm=norm, norm_heads=True)
    stacks = stack_layers((Layer(mixer, MLP(f), norm, "post"),) * layers)
    return Config(100352, d, stacks, norm, False, 4096, "olmo2")


FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    table=(*tables.TOP, *tables.SANDWICH_NORMS, *tables.ATTENTION, *tables.QK_NORM, *tables.FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "olmo-2-1b": _preset(16, 2048, 16, 16, 8192),
        "olmo-2-7b": _preset(32, 4096, 32, 32, 11008),
        "olmo-2-13b": _preset(40, 5120, 40, 40, 13824),
        "olmo-2-32b": _preset(64, 5120, 40, 8, 27648),
    },
)
