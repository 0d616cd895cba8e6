"""Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B (arXiv:2407.10671).

Differs from Qwen3-MoE: biases on q, k and v and no norms; the chosen weights are not renormalised;
and every token also goes through a shared expert, times the sigmoid of a gate of its own. A window,
if there is one, is on the even layers below `max_window_layers`.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.table import Linear, Row
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.parts import attention, common, decoder, heads, layer_windows, windows

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "qkv_bias": True,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4,
    "num_experts": 60,
    "norm_topk_prob": False,
}
SHARED = (
    *tables.shared_expert("shared_expert"),
    Row(tables.IN_MLP + "shared_expert_gate.weight", "moe/shared_gate/w", Linear()),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen2_moe."""
    keys = Keys(hf, DEFAULTS)
    norm, act = Norm(keys.number("rms_norm_eps")), keys.activation()
    dense = MLP(keys.integer("intermediate_size"), act)
    moe = parts.experts(
        keys,
        renormalize=bool(keys["norm_topk_prob"]),
        shared=MLP(keys.integer("shared_expert_intermediate_size"), act),
        shared_gate=True,
    )
    bias = bool(keys["qkv_bias"])
    layers = tuple(
        Layer(attention(keys, qkv_bias=bias, window=window), moe if sparse else dense, norm)
        for window, sparse in zip(_windows(keys), parts.stepped_layers(keys), strict=True)
    )
    return decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type qwen2_moe."""
    moe = next(la.ffn for la in cfg.layers if isinstance(la.ffn, MoE))
    dense = (la.ffn.hidden for la in cfg.layers if isinstance(la.ffn, MLP))
    found = windows(cfg)
    return {
        **common(cfg),
        **heads(cfg.layers[0].mixer, bias="qkv_bias"),
        "intermediate_size": next(dense, moe.shared.hidden),
        "use_sliding_window": found["sliding_window"] is not None,
        "max_window_layers": len(cfg.layers),
        **found,
        **parts.write_stepped_layers(cfg),
        **parts.write_experts(moe),
        "shared_expert_intermediate_size": moe.shared.hidden,
        "norm_topk_prob": moe.renormalize,
    }


def _windows(keys: Keys) -> list[int | None]:
    """Each layer's window."""
    on, last = bool(keys["use_sliding_window"]), keys["max_window_layers"]
    last = keys.integer("max_window_layers", 0) if on else last
    default = [
        "sliding_attention" if on and i % 2 == 0 and i < last else "full_attention"
        for i in range(keys.integer("num_hidden_layers"))
    ]
    return layer_windows(keys, default, on)


def _preset(layers, d, n, k, f, shared, experts, top_k, length) -> Config:
    norm = Norm(1e-6)
    moe = MoE(experts, top_k, f, renormalize=False, shared=MLP(shared), shared_gate=True)
    layer = Layer(Attention(n, k, 128, Rope(128, 1e6), qkv_bias=True), moe, norm)
    stacks = stack_layers((layer,) * layers)
    return Config(151936, d, stacks, norm, max_length=length, family="qwen2_moe")


FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    table=(*tables.LLAMA, *tables.EXPERTS, *SHARED),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "qwen1.5-moe-a2.7b": _preset(24, 2048, 16, 16, 1408, 5632, 60, 4, 8192),
        "qwen2-57b-a14b": _preset(28, 3584, 28, 4, 2560, 20480, 64, 8, 131072),
    },
)
