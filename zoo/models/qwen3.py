"""Qwen3 dense (arXiv:2505.09388).

Differs from Llama: RMSNorm on each head of q and k before the rotation, a head_dim that is not
embed_dim / heads, and (unused in releases) a sliding window on the layers from `max_window_layers`
on.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import parts
from zoo.models.family import Family
from zoo.models.parts import (
    attention,
    common,
    decoder,
    dense,
    heads,
    late_windows,
    write_late_windows,
)
from zoo.models.tables import LLAMA, QK_NORM

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen3."""
    keys = Keys(hf, DEFAULTS)
    norm = Norm(keys.number("rms_norm_eps"))
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    bias = keys["attention_bias"]
    layers = tuple(
        Layer(attention(keys, o_bias=bias, qk_norm=norm, window=window), ffn, norm)
        for window in late_windows(keys)
    )
    return decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type qwen3."""
    layer = cfg.layers[0]
    return {
        **common(cfg),
        **heads(layer.mixer),
        **dense(layer.ffn),
        **write_late_windows(cfg),
    }


def _preset(layers, d, n, f, tied=False, theta=1e6, length=40960) -> Config:
    norm = Norm(1e-6)
    layer = Layer(Attention(n, 8, 128, Rope(128, theta), qk_norm=norm), MLP(f), norm)
    return Config(151936, d, stack_layers((layer,) * layers), norm, tied, length, "qwen3")


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    table=(*LLAMA, *QK_NORM),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "qwen3-0.6b": _preset(28, 1024, 16, 3072, tied=True),
        "qwen3-1.7b": _preset(28, 2048, 16, 6144, tied=True),
        "qwen3-4b": _preset(36, 2560, 32, 9728, tied=True),
        "qwen3-4b-2507": _preset(36, 2560, 32, 9728, tied=True, theta=5e6, length=262144),
        "qwen3-8b": _preset(36, 4096, 32, 12288),
        "qwen3-14b": _preset(40, 5120, 40, 17408),
        "qwen3-32b": _preset(64, 5120, 64, 25600),
    },
)
