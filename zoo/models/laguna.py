"""Laguna (Poolside, 2026): XS.2 33B-A3B.

Differs from Qwen3-MoE: a softplus of a projection of x multiplies the output of each head; layers
may have different numbers of heads; DeepSeek-V3's router, in the model's dtype, with a shared
expert; layers of two kinds, which see a window or all and rotate differently, a part of the head
each. No presets: XS.2's layer types and heads are in its files only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import MLP, Config, Layer, Norm
from zoo.hf.keys import Keys
from zoo.hf.table import Linear, Row, Same
from zoo.models import parts
from zoo.models.family import Family
from zoo.models.parts import IN_ATTENTION, IN_MLP

ROPES = {
    "full_attention": {
        "rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5,
    },
    "sliding_attention": {
        "rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0,
    },
}  # fmt: skip
DEFAULTS = {
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 48,
    "num_attention_heads_per_layer": None,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "gating": True,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_parameters": ROPES,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": 512,
    "layer_types": None,
    "mlp_layer_types": None,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8,
    "num_experts": 256,
    "moe_routed_scaling_factor": 1.0,
    "moe_apply_router_weight_on_input": False,
    "moe_router_logit_softcapping": 0.0,
}
# The second name of each is that of transformers 5 in memory.
OWN = (
    Row(IN_ATTENTION + "g_proj.weight", "attn/gate/w", Linear()),
    Row(IN_MLP + "experts.e_score_correction_bias", "moe/bias/b", Same()),
    Row(IN_MLP + "gate.e_score_correction_bias", "moe/bias/b", Same()),
    *parts.shared_expert("shared_expert"),
    *parts.shared_expert("shared_experts"),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type laguna."""
    keys = Keys(hf, DEFAULTS)
    norm, act, bias = Norm(float(keys["rms_norm_eps"])), keys.activation(), keys["attention_bias"]
    dense = MLP(keys.integer("intermediate_size"), act)
    moe = parts.experts(
        keys,
        score="sigmoid",
        select_bias=True,
        scale=float(keys["moe_routed_scaling_factor"]),
        shared=MLP(keys.integer("shared_expert_intermediate_size"), act),
    )
    count = keys.integer("num_hidden_layers")
    windows = parts.layer_windows(keys, ["full_attention"] * count)
    heads = keys["num_attention_heads_per_layer"] or [keys.integer("num_attention_heads")] * count
    if len(heads) != count:
        raise keys.error(
            "num_attention_heads_per_layer", f"it needs a number for each of {count} layers"
        )
    if keys["gating"] not in (True, "per-head", "per-element"):
        raise keys.error("gating", "known are true, per-head and per-element")
    ropes = parts.ropes_by_kind(keys)
    mixers = {
        window: parts.attention(
            keys, bias, window=window, qk_norm=norm, gated=True, gate_act="softplus",
            gate_heads=keys["gating"] != "per-element",
            rope=ropes["sliding_attention" if window else "full_attention"],
        )
        for window in set(windows)
    }  # fmt: skip
    layers = tuple(
        Layer(replace(mixers[window], heads=n), moe if sparse else dense, norm)
        for window, n, sparse in zip(windows, heads, parts.sparse_layers(keys, 1), strict=True)
    )
    return parts.decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type laguna."""
    a, (moe, dense) = cfg.layers[0].mixer, parts.ffns(cfg)
    return {
        **parts.common(cfg),
        "num_attention_heads": a.heads,
        "num_attention_heads_per_layer": [la.mixer.heads for la in cfg.layers],
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "attention_bias": a.qkv_bias,
        "gating": "per-head" if a.gate_heads else "per-element",
        **parts.write_ropes_by_kind(cfg, ROPES),
        **parts.windows(cfg),
        "intermediate_size": dense.hidden,
        **parts.ffn_types(cfg),
        **parts.write_experts(moe),
        "shared_expert_intermediate_size": moe.shared.hidden,
        "moe_routed_scaling_factor": moe.scale,
    }


FAMILY = Family(
    model_type="laguna",
    architecture="LagunaForCausalLM",
    table=(
        *parts.TOP,
        *parts.NORMS,
        *parts.ATTENTION,
        *parts.QK_NORM,
        *parts.FFN,
        *parts.EXPERTS,
        *OWN,
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={},
)
