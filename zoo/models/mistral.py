"""Mistral 7B (arXiv:2310.06825), NeMo, Small and Large, and Ministral 8B.

Differs from Llama: a window on every layer (7B v0.1 and Ministral 8B), a head_dim that is not
embed_dim / heads (NeMo, Small 3), no biases. Model type ministral names the layers that have the
window. The text part of Small 3.1 and 3.2 is of model type mistral, inside of mistral3
(`zoo.models.ministral3`).
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import parts, tables
from zoo.models.family import Family

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "sliding_window": 4096,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type mistral."""
    keys = Keys(hf, DEFAULTS)
    norm, ffn = _norm(keys), _ffn(keys)
    mixer = parts.attention(keys, qkv_bias=False, window=keys["sliding_window"])
    return parts.uniform(keys, mixer, ffn, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type mistral."""
    layer = cfg.layers[0]
    return {
        **parts.common(cfg),
        **parts.heads(layer.mixer, bias=None),
        **parts.dense(layer.ffn),
        "sliding_window": layer.mixer.window,
    }


def ministral_from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type ministral."""
    keys = Keys(hf, {**DEFAULTS, "layer_types": None})
    norm, ffn = _norm(keys), _ffn(keys)
    kind = "full_attention" if keys["sliding_window"] is None else "sliding_attention"
    default = [kind] * keys.integer("num_hidden_layers")
    layers = tuple(
        Layer(parts.attention(keys, qkv_bias=False, window=window), ffn, norm)
        for window in parts.layer_windows(keys, default)
    )
    return parts.decoder(keys, layers, norm)


def ministral_to_hf(cfg: Config) -> dict:
    """The config keys of model_type ministral."""
    return to_hf(cfg) | parts.windows(cfg)


def _norm(keys: Keys) -> Norm:
    return Norm(keys.number("rms_norm_eps"))


def _ffn(keys: Keys) -> MLP:
    return MLP(keys.integer("intermediate_size"), keys.activation())


def _preset(layers, d, n, f, vocab=32768, theta=1e6, length=32768, window=None) -> Config:
    norm = Norm(1e-5)
    layer = Layer(Attention(n, 8, 128, Rope(128, theta), window), MLP(f), norm)
    return Config(vocab, d, stack_layers((layer,) * layers), norm, False, length, "mistral")


_LARGE = _preset(88, 12288, 96, 28672, length=131072)

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    table=tables.LLAMA,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "mistral-7b-v0.1": _preset(32, 4096, 32, 14336, 32000, 1e4, window=4096),
        "mistral-7b-v0.2": _preset(32, 4096, 32, 14336, 32000),
        "mistral-7b-v0.3": _preset(32, 4096, 32, 14336),
        "mistral-large-2407": _LARGE,
        "mistral-large-2411": _LARGE,
        "mistral-small-3.1-24b": _preset(40, 5120, 32, 32768, 131072, 1e9, 131072),
        "mistral-nemo": _preset(40, 5120, 32, 14336, 131072, length=128000),
        "mistral-small-2501": _preset(40, 5120, 32, 32768, 131072, 1e8),
        # from memory: these two; parameter counts agree
        "mistral-small-2409": _preset(56, 6144, 48, 16384),
        "ministral-8b-2410": _preset(36, 4096, 32, 12288, 131072, 1e8, window=32768),
    },
)
MINISTRAL = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    table=FAMILY.table,
    from_hf=ministral_from_hf,
    to_hf=ministral_to_hf,
    presets={},
)
