"""EXAONE 4.0 (arXiv:2507.11407): 1.2B, 32B.

Differs from OLMo 2, whose norms stand behind attention and the MLP too: q and k are normalised head
by head. In the larger model three layers of four see a window; the others see all and have no
positions.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Llama3Scaling, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.parts import FULL, LOCAL

DEFAULTS = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_types": None,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type exaone4."""
    keys = Keys(hf, DEFAULTS)
    norm = Norm(keys.number("rms_norm_eps"))
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    windows = parts.layer_windows(keys, kinds(keys))
    mixers = parts.unturned(keys, windows, qkv_bias=False, qk_norm=norm)
    return parts.decoder(keys, tuple(Layer(mixer, ffn, norm, "post") for mixer in mixers), norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type exaone4."""
    turned = next(la.mixer for la in cfg.layers if la.mixer.rope is not None)
    return {
        **parts.common(cfg),
        **parts.heads(turned, bias=None),
        **parts.windows(cfg),
        **parts.dense(cfg.layers[0].ffn),
    }


def kinds(keys: Keys) -> list[str]:
    """Kinds of layers by sliding_window_pattern: a period, or a letter per layer of it."""
    pattern, layers = keys["sliding_window_pattern"], keys.integer("num_hidden_layers")
    if keys["sliding_window"] is None:
        return [FULL] * layers
    if isinstance(pattern, int):
        return parts.every(keys.integer("sliding_window_pattern"), keys)
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return [LOCAL if pattern[i % len(pattern)] == "L" else FULL for i in range(layers)]
    raise keys.error("sliding_window_pattern", "it is a period as a number, or letters L and G")


def _preset(layers, d, n, f, h, length, window=None, tied=False) -> Config:
    norm, rope = Norm(1e-5), Rope(h, 1e6, scaling=Llama3Scaling(16.0, 1.0, 4.0, 8192))
    local = Attention(n, 8, h, rope, window, qk_norm=norm)
    full = Attention(n, 8, h, None, qk_norm=norm) if window else local
    kinds = (full if i % 4 == 3 else local for i in range(layers))
    stacks = stack_layers(tuple(Layer(mixer, MLP(f), norm, "post") for mixer in kinds))
    return Config(102400, d, stacks, norm, tied, length, "exaone4")


FAMILY = Family(
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    table=(*tables.TOP, *tables.SANDWICH_NORMS, *tables.ATTENTION, *tables.QK_NORM, *tables.FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "exaone-4.0-1.2b": _preset(30, 2048, 32, 4096, 64, 65536, tied=True),
        "exaone-4.0-32b": _preset(64, 5120, 40, 27392, 128, 131072, window=4096),
    },
)
