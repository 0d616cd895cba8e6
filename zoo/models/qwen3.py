"""Qwen3 dense (arXiv:2505.09388).

Differs from Llama: RMSNorm on each head of q and k before the rotation, a head_dim that is not
embed_dim / heads, and (unused in releases) a sliding window on the layers from `max_window_layers`
on.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.models.family import Family
from zoo.models.parts import ATTENTION, FFN, NORMS, QK_NORM, TOP, attention, common, decoder, heads

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen3."""
    keys = Keys(hf, DEFAULTS)
    norm = Norm(float(keys["rms_norm_eps"]))
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    bias = keys["attention_bias"]
    layers = tuple(
        Layer(attention(keys, o_bias=bias, qk_norm=norm, window=window), ffn, norm)
        for window in _windows(keys)
    )
    cfg = decoder(keys, layers, norm)
    keys.close()
    return cfg


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type qwen3."""
    layer = cfg.layers[0]
    windows = [la.mixer.window for la in cfg.layers]
    kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
    return {
        **common(cfg),
        **heads(layer.mixer),
        "intermediate_size": layer.ffn.hidden,
        "hidden_act": activation_name(layer.ffn.act),
        "use_sliding_window": any(windows),
        "sliding_window": next(filter(None, windows), None),
        "max_window_layers": kinds.count("full_attention"),
        "layer_types": kinds,
    }


def _windows(keys: Keys) -> list[int | None]:
    """Each layer's window: the config's where a layer is of the sliding kind."""
    layers, on = keys.integer("num_hidden_layers"), keys["use_sliding_window"]
    window, first, kinds = (keys[k] for k in ("sliding_window", "max_window_layers", "layer_types"))
    if kinds is None:
        sliding = on and window is not None
        kinds = [
            "sliding_attention" if sliding and i >= first else "full_attention"
            for i in range(layers)
        ]
    if len(kinds) != layers:
        raise keys.error("layer_types", f"it must name all {layers} layers")
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise keys.error("layer_types", "known are full_attention and sliding_attention")
    if "sliding_attention" in kinds and not (on and window):
        raise keys.error("layer_types", "sliding layers need use_sliding_window and sliding_window")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _preset(layers, d, n, f, tied=False, theta=1e6, length=40960) -> Config:
    norm = Norm(1e-6)
    layer = Layer(Attention(n, 8, 128, Rope(128, theta), qk_norm=norm), MLP(f), norm)
    return Config(151936, d, stack_layers((layer,) * layers), norm, tied, length, "qwen3")


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    table=(*TOP, *NORMS, *ATTENTION, *QK_NORM, *FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "qwen3-0.6b": _preset(28, 1024, 16, 3072, tied=True),
        "qwen3-1.7b": _preset(28, 2048, 16, 6144, tied=True),
        "qwen3-4b": _preset(36, 2560, 32, 9728, tied=True),
        "qwen3-8b": _preset(36, 4096, 32, 12288),
        "qwen3-14b": _preset(40, 5120, 40, 17408),
        "qwen3-32b": _preset(64, 5120, 64, 25600),
    },
)
