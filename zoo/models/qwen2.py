"""Qwen2 (arXiv:2407.10671) and 2.5 (arXiv:2412.15115), QwQ, DeepSeek-R1-Distill-Qwen.

Differs from Llama: q, k and v have biases, always, and o never; the layers from `max_window_layers`
on may see a window (in no release).
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import parts, tables
from zoo.models.family import Family

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "use_mrope": False,  # in R1-Distill-Qwen; the class has no such key
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen2."""
    keys = Keys(hf, DEFAULTS)
    norm = Norm(keys.number("rms_norm_eps"))
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    layers = tuple(
        Layer(parts.attention(keys, qkv_bias=True, window=window), ffn, norm)
        for window in parts.late_windows(keys)
    )
    return parts.decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type qwen2."""
    layer = cfg.layers[0]
    return {
        **parts.common(cfg),
        **parts.heads(layer.mixer, bias=None),
        **parts.dense(layer.ffn),
        **parts.write_late_windows(cfg),
    }


def _preset(
    layers, d, n, k, f, length=131072, theta=1e6, eps=1e-6, tied=False, vocab=152064
) -> Config:
    norm, h = Norm(eps), d // n
    layer = Layer(Attention(n, k, h, Rope(h, theta), qkv_bias=True), MLP(f), norm)
    return Config(vocab, d, stack_layers((layer,) * layers), norm, tied, length, "qwen2")


_SMALL = dict(vocab=151936, tied=True)
_32B = dict(layers=64, d=5120, n=40, k=8, f=27648, eps=1e-5)
_14B = dict(layers=48, d=5120, n=40, k=8, f=13824, eps=1e-5)

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    table=tables.LLAMA,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={  # base models; instructed ones differ in length, and above 7B in eps (1e-6)
        "qwen2-0.5b": _preset(24, 896, 14, 2, 4864, **_SMALL),
        "qwen2-1.5b": _preset(28, 1536, 12, 2, 8960, **_SMALL),
        "qwen2-7b": _preset(28, 3584, 28, 4, 18944),
        "qwen2-72b": _preset(80, 8192, 64, 8, 29568, eps=1e-5),
        "qwen2.5-0.5b": _preset(24, 896, 14, 2, 4864, 32768, **_SMALL),
        "qwen2.5-1.5b": _preset(28, 1536, 12, 2, 8960, **_SMALL),
        "qwen2.5-3b": _preset(36, 2048, 16, 2, 11008, 32768, **_SMALL),
        "qwen2.5-7b": _preset(28, 3584, 28, 4, 18944),
        "qwen2.5-14b": _preset(**_14B),
        "qwen2.5-32b": _preset(**_32B),
        "qwen2.5-72b": _preset(80, 8192, 64, 8, 29568, eps=1e-5),
        "qwq-32b": _preset(**_32B, length=40960),
        "deepseek-r1-distill-qwen-1.5b": _preset(28, 1536, 12, 2, 8960, theta=1e4, vocab=151936),
        "deepseek-r1-distill-qwen-7b": _preset(28, 3584, 28, 4, 18944, theta=1e4),
        # GGUFs of a 14B and of a 32B say theta and length, and that of the 14B eps
        "deepseek-r1-distill-qwen-14b": _preset(**_14B),
        "deepseek-r1-distill-qwen-32b": _preset(**_32B),
    },
)
