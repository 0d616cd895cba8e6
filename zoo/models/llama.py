"""Llama 2, 3, 3.1, 3.2, 3.3 (arXiv:2307.09288, arXiv:2407.21783) and models of its architecture:
Yi (arXiv:2403.04652), SmolLM2 (arXiv:2502.02737), DeepSeek-R1-Distill-Llama (arXiv:2501.12948).

The base of all families here: pre-RMSNorm, grouped-query attention with rotary positions, SwiGLU,
no biases unless the config asks for them (`attention_bias` covers q, k, v and o).
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Llama3Scaling, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.models import parts
from zoo.models.family import Family
from zoo.models.parts import attention, common, heads, uniform
from zoo.models.tables import LLAMA

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "mlp_bias": False,
}
RELEASED = {"rope_interleaved": False, "is_llama_config": True}
"""What SmolLM2 writes; the class has no such keys."""


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type llama."""
    keys = Keys(hf, DEFAULTS | RELEASED)
    norm = Norm(keys.number("rms_norm_eps"))
    mixer = attention(keys, o_bias=keys["attention_bias"])
    ffn = MLP(keys.integer("intermediate_size"), keys.activation(), keys["mlp_bias"])
    return uniform(keys, mixer, ffn, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type llama."""
    layer = cfg.layers[0]
    return {
        **common(cfg),
        **heads(layer.mixer),
        "intermediate_size": layer.ffn.hidden,
        "hidden_act": activation_name(layer.ffn.act),
        "mlp_bias": layer.ffn.bias,
    }


def _preset(
    layers, d, n, k, f, vocab, theta, length, scaling=None, tied=False, h=128, eps=1e-5
) -> Config:
    norm = Norm(eps)
    mixer = Attention(n, k, h, Rope(h, theta, scaling=scaling))
    stacks = stack_layers((Layer(mixer, MLP(f), norm),) * layers)
    return Config(vocab, d, stacks, norm, tied, length)


_8X, _32X = Llama3Scaling(8.0, 1.0, 4.0, 8192), Llama3Scaling(32.0, 1.0, 4.0, 8192)
_31_8B = _preset(32, 4096, 32, 8, 14336, 128256, 5e5, 131072, _8X)
_31_70B = _preset(80, 8192, 64, 8, 28672, 128256, 5e5, 131072, _8X)

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    table=LLAMA,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "llama-2-7b": _preset(32, 4096, 32, 32, 11008, 32000, 1e4, 4096),
        "llama-2-13b": _preset(40, 5120, 40, 40, 13824, 32000, 1e4, 4096),
        "llama-2-70b": _preset(80, 8192, 64, 8, 28672, 32000, 1e4, 4096),
        "llama-3-8b": _preset(32, 4096, 32, 8, 14336, 128256, 5e5, 8192),
        "llama-3-70b": _preset(80, 8192, 64, 8, 28672, 128256, 5e5, 8192),
        "llama-3.1-8b": _31_8B,
        "llama-3.1-70b": _31_70B,
        "llama-3.1-405b": _preset(126, 16384, 128, 8, 53248, 128256, 5e5, 131072, _8X),
        "llama-3.2-1b": _preset(16, 2048, 32, 8, 8192, 128256, 5e5, 131072, _32X, True, 64),
        "llama-3.2-3b": _preset(28, 3072, 24, 8, 8192, 128256, 5e5, 131072, _32X, True),
        "llama-3.3-70b": _31_70B,
        "deepseek-r1-distill-llama-8b": _31_8B,
        "deepseek-r1-distill-llama-70b": _31_70B,
        "smollm2-135m": _preset(30, 576, 9, 3, 1536, 49152, 1e5, 8192, tied=True, h=64),
        "yi-6b": _preset(32, 4096, 32, 4, 11008, 64000, 5e6, 4096),
        "yi-9b": _preset(48, 4096, 32, 4, 11008, 64000, 5e6, 4096),
        "yi-34b": _preset(60, 7168, 56, 8, 20480, 64000, 5e6, 4096),
        "smollm2-360m": _preset(32, 960, 15, 5, 2560, 49152, 1e5, 8192, tied=True, h=64),
        "smollm2-1.7b": _preset(24, 2048, 32, 32, 8192, 49152, 1.3e5, 8192, tied=True, h=64),
        # from memory: eps of Yi 1.5
        "yi-1.5-6b": _preset(32, 4096, 32, 4, 11008, 64000, 5e6, 4096, eps=1e-6),
        "yi-1.5-9b": _preset(48, 4096, 32, 4, 11008, 64000, 5e6, 4096, eps=1e-6),
        "yi-1.5-34b": _preset(60, 7168, 56, 8, 20480, 64000, 5e6, 4096, eps=1e-6),
    },
)
