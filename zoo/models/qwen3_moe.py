"""Qwen3-MoE (arXiv:2505.09388): 30B-A3B, 235B-A22B, Qwen3-Coder-480B-A35B.

Differs from Qwen3: the feed-forward network is a mixture of experts, routed by a softmax over all
experts in the model's dtype, the chosen weights renormalised in releases (not by default). Layers
of `mlp_only_layers`, and those that `decoder_sparse_step` skips, stay dense. A window covers all
layers.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.parts import attention, common, decoder, heads

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": None,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
    # In released files; the class takes them for granted.
    "qkv_bias": False,
    "shared_expert_intermediate_size": 0,
    "shared_experts_intermediate_size": 0,  # so in Qwen3-Coder-30B-A3B
    "use_qk_norm": True,
}
UNUSED = frozenset({"max_window_layers"})  # in released files; the class has no such key


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen3_moe."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = Norm(keys.number("rms_norm_eps"))
    on, window = keys["use_sliding_window"], keys["sliding_window"]
    window = window if on else None
    mixer = attention(keys, o_bias=keys["attention_bias"], qk_norm=norm, window=window)
    dense = MLP(keys.integer("intermediate_size"), keys.activation())
    moe = parts.experts(
        keys,
        renormalize=bool(keys["norm_topk_prob"]),
    )
    layers = tuple(
        Layer(mixer, moe if sparse else dense, norm) for sparse in parts.stepped_layers(keys)
    )
    return decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type qwen3_moe."""
    mixer, (moe, dense) = cfg.layers[0].mixer, parts.ffns(cfg)
    return {
        **common(cfg),
        **heads(mixer),
        "intermediate_size": dense.hidden,
        "use_sliding_window": mixer.window is not None,
        "sliding_window": mixer.window,
        **parts.write_stepped_layers(cfg),
        **parts.write_experts(moe),
        "norm_topk_prob": moe.renormalize,
    }


def _preset(layers, d, n, k, f, experts, theta, length) -> Config:
    norm = Norm(1e-6)
    mixer = Attention(n, k, 128, Rope(128, theta), qk_norm=norm)
    layer = Layer(mixer, MoE(experts, 8, f), norm)
    stacks = stack_layers((layer,) * layers)
    return Config(151936, d, stacks, norm, max_length=length, family="qwen3_moe")


_30B_LONG = _preset(48, 2048, 32, 4, 768, 128, 1e7, 262144)

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    table=(*tables.LLAMA, *tables.QK_NORM, *tables.EXPERTS),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "qwen3-30b-a3b": _preset(48, 2048, 32, 4, 768, 128, 1e6, 40960),
        "qwen3-235b-a22b": _preset(94, 4096, 64, 4, 1536, 128, 1e6, 40960),
        "qwen3-30b-a3b-2507": _30B_LONG,
        "qwen3-235b-a22b-2507": _preset(94, 4096, 64, 4, 1536, 128, 5e6, 262144),
        "qwen3-coder-30b-a3b": _30B_LONG,
        "qwen3-coder-480b-a35b": _preset(62, 6144, 96, 8, 2560, 160, 1e7, 262144),
    },
)
