"""Laguna (Poolside, 2026): XS.2 33B-A3B, S 2.1.

Differs from Qwen3-MoE: a softplus of a projection of x multiplies the output of each head; layers
may have different numbers of heads; DeepSeek-V3's router, in the model's dtype, with a shared
expert; layers of two kinds, which see a window or all and rotate differently, a part of the head
each. Released configs say some things twice, which must agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, YarnScaling, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.table import Linear, Row, Same
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.parts import FULL, LOCAL
from zoo.models.tables import IN_ATTENTION, IN_MLP

ROPES = parts.default_ropes(500_000.0, 10_000.0, partial_rotary_factor=1.0)
ROPES[FULL]["partial_rotary_factor"] = 0.5
DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 48,
    "num_attention_heads_per_layer": None,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "gating": True,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_parameters": ROPES,
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
    # In released files; the class takes them for granted.
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "use_bidirectional_attention": False,
}
GATE = dict(gated=True, gate_act="softplus")  # fields of `Attention`, and then of `MoE`
ROUTER = dict(score="sigmoid", select_bias=True)
# The second name of each is that of transformers 5 in memory.
OWN = (
    Row(IN_ATTENTION + "g_proj.weight", "attn/gate/w", Linear()),
    Row(IN_MLP + "experts.e_score_correction_bias", "moe/bias/b", Same()),
    Row(IN_MLP + "gate.e_score_correction_bias", "moe/bias/b", Same()),
    *tables.shared_expert("shared_expert"),
    *tables.shared_expert("shared_experts"),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type laguna."""
    keys = Keys({**hf, "rope_parameters": _ropes(hf)}, DEFAULTS)
    norm, act, bias = Norm(keys.number("rms_norm_eps")), keys.activation(), keys["attention_bias"]
    dense = MLP(keys.integer("intermediate_size"), act)
    shared = MLP(keys.integer("shared_expert_intermediate_size"), act)
    scale = keys.number("moe_routed_scaling_factor")
    moe = parts.experts(keys, scale=scale, shared=shared, **ROUTER)
    count = keys.integer("num_hidden_layers")
    heads = keys["num_attention_heads_per_layer"] or [keys.integer("num_attention_heads")] * count
    if len(heads) != count:
        fix = f"it needs a number for each of {count} layers"
        raise keys.error("num_attention_heads_per_layer", fix)
    if keys["gating"] not in (True, "per-head", "per-element"):
        raise keys.error("gating", "known are true, per-head and per-element")
    gate = dict(GATE, gate_heads=keys["gating"] != "per-element")
    ropes = parts.ropes_by_kind(keys)
    full = parts.attention(keys, bias, rope=ropes[FULL], qk_norm=norm, **gate)
    local = replace(full, rope=ropes[LOCAL])
    sparse = parts.sparse_layers(keys, 1)
    keys.agree("mlp_only_layers", [i for i in range(count) if not sparse[i]], "mlp_layer_types")
    kind = "per_head" if gate["gate_heads"] else "per_element"
    keys.agree("gating_types", [kind] * count, "gating")
    windows, ffns = parts.layer_windows(keys, [FULL] * count), [moe if s else dense for s in sparse]
    layers = tuple(
        Layer(replace(local if window else full, window=window, heads=n), ffn, norm)
        for window, n, ffn in zip(windows, heads, ffns, strict=True)
    )
    return parts.decoder(keys, layers, norm)


def _ropes(hf: Mapping) -> dict:
    """The rotations by kind of layer, without the length of XS.2 that stands beside them."""
    ropes, key = hf.get("rope_parameters") or ROPES, "original_max_position_embeddings"
    if not isinstance(ropes, Mapping) or key not in ropes:
        return ropes
    ropes = dict(ropes)
    beside, full = ropes.pop(key), ropes.get(FULL)
    inside = full.get(key) if isinstance(full, Mapping) else None
    if beside not in (None, inside):
        fix = f"is not understood: full_attention says {inside}"
        raise ValueError(f"laguna config: {key}={beside!r} {fix}")
    return ropes


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type laguna."""
    a, (moe, dense) = cfg.layers[0].mixer, parts.ffns(cfg)
    return {
        **parts.common(cfg),
        **parts.head_sizes(a),
        "num_attention_heads_per_layer": [la.mixer.heads for la in cfg.layers],
        "gating": "per-head" if a.gate_heads else "per-element",
        **parts.write_ropes_by_kind(cfg, ROPES),
        **parts.windows(cfg),
        "intermediate_size": dense.hidden,
        **parts.ffn_types(cfg),
        **parts.write_experts(moe),
        "shared_expert_intermediate_size": moe.shared.hidden,
        "moe_routed_scaling_factor": moe.scale,
    }


def _preset(d, f, layers, heads, hidden, top_k, factor, original, fast) -> Config:
    norm, act = Norm(1e-6), dict(GATE, gate_heads=True)
    scaling = YarnScaling(factor, original, fast, attention_factor=0.1 * math.log(factor) + 1)
    full = Attention(48, 8, 128, Rope(64, 5e5, scaling=scaling), qk_norm=norm, **act)
    local = Attention(heads, 8, 128, Rope(128, 1e4), 512, qk_norm=norm, **act)
    moe = MoE(256, top_k, hidden, scale=2.5, shared=MLP(hidden), **ROUTER)
    mixers = (full, local, local, local) * (layers // 4)
    kinds = tuple(Layer(mixer, moe if i else MLP(f), norm) for i, mixer in enumerate(mixers))
    return Config(100352, d, stack_layers(kinds), norm, max_length=262144, family="laguna")


FAMILY = Family(
    model_type="laguna",
    architecture="LagunaForCausalLM",
    table=(*tables.LLAMA, *tables.QK_NORM, *tables.EXPERTS, *OWN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "laguna-xs.2": _preset(2048, 8192, 40, 64, 512, 8, 64.0, 4096, 64.0),
        "laguna-s-2.1": _preset(3072, 12288, 48, 72, 1024, 10, 32.0, 8192, 32.0),
    },
)
