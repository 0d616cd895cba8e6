"""MiMo-V2-Flash (Xiaomi, 2026; arXiv:2601.02780): 309B-A15B.

Differs from GLM-4.5: five layers of six see a window, have twice the key and value heads and a sink
per head, and rotate by another theta; values have fewer elements than keys and are multiplied by a
constant; mixtures have no shared expert. Layers of multi-token prediction are carried along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.table import Row, Same
from zoo.models import latent, parts, tables
from zoo.models.family import INV_FREQ, Family
from zoo.models.glm4_moe import MOE_DEFAULTS
from zoo.models.tables import IN_ATTENTION

ROPES = parts.default_ropes(5_000_000.0, 10_000.0, partial_rotary_factor=0.334)
DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 152576,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "attention_value_scale": 0.707,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": ROPES,
    "sliding_window": 129,
    "layer_types": None,
    "mlp_layer_types": None,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    **MOE_DEFAULTS,
    # In released files, which say in other words what the class takes for granted.
    "add_full_attention_sink_bias": False,
    "add_swa_attention_sink_bias": True,
    "hybrid_block_size": None,
    "layernorm_epsilon": 1e-5,
    "n_shared_experts": None,
    "partial_rotary_factor": 0.334,
    "rope_theta": 5_000_000.0,
    "swa_rope_theta": 10_000.0,
}
UNUSED = frozenset({"attention_chunk_size", "sliding_window_size"})
SINKS = (
    Row(IN_ATTENTION + "attention_sink_bias", "attn/sinks", Same()),
    Row(IN_ATTENTION + "sinks", "attn/sinks", Same()),  # as in memory
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type mimo_v2_flash."""
    if hf.get("sliding_window_size") is not None:  # the tokens before a query, without itself
        size = Keys(hf, DEFAULTS).integer("sliding_window_size")
        hf = {**hf, "sliding_window": size + 1}
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = Norm(keys.number("rms_norm_eps"))
    dense = MLP(keys.integer("intermediate_size"), keys.activation())
    scale, ropes = keys["routed_scaling_factor"], parts.ropes_by_kind(keys)
    moe = parts.experts(
        keys, "n_routed_experts", scale=float(scale or 1.0), **latent.NOAUX, **latent.groups(keys)
    )
    full = parts.attention(
        keys, rope=ropes["full_attention"], v_dim=keys.integer("v_head_dim"),
        v_scale=keys["attention_value_scale"] or 1.0,
    )  # fmt: skip
    local = replace(full, rope=ropes["sliding_attention"], kv_heads=2 * full.kv_heads, sinks=True)
    windows = parts.layer_windows(keys, ["full_attention", *parts.every(6, keys)[1:]])
    sparse = parts.sparse_layers(keys, dense=1)
    _check_released(keys, windows, sparse)
    layers = tuple(
        Layer(replace(local, window=window) if window else full, moe if routed else dense, norm)
        for window, routed in zip(windows, sparse, strict=True)
    )
    return parts.decoder(keys, layers, norm)


def _check_released(keys: Keys, windows: list[int | None], sparse: list[bool]) -> None:
    """Raises ValueError where keys of released files differ from what the class derives."""
    derived = {
        "hybrid_layer_pattern": [int(window is not None) for window in windows],
        "moe_layer_freq": [int(routed) for routed in sparse],
        "swa_num_attention_heads": keys["num_attention_heads"],
        "swa_num_key_value_heads": 2 * keys["num_key_value_heads"],
        "swa_head_dim": keys["head_dim"],
        "swa_v_head_dim": keys["v_head_dim"],
    }
    for key, value in derived.items():
        keys.agree(key, value, "the other keys")


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type mimo_v2_flash."""
    a, (moe, dense) = cfg.layers[0].mixer, parts.ffns(cfg)
    return {
        **parts.common(cfg),
        **parts.head_sizes(a),
        "num_key_value_heads": a.kv_heads if a.window is None else a.kv_heads // 2,
        "v_head_dim": a.value_dim,
        "attention_value_scale": a.v_scale,
        **parts.write_ropes_by_kind(cfg, ROPES),
        **parts.windows(cfg),
        "intermediate_size": dense.hidden,
        **parts.ffn_types(cfg),
        **parts.write_experts(moe, "n_routed_experts"),
        "routed_scaling_factor": moe.scale,
        "n_group": moe.groups,
        "topk_group": moe.top_groups,
        "norm_topk_prob": moe.renormalize,
    }


def _flash() -> Config:
    norm = Norm(1e-5)
    full = Attention(64, 4, 192, Rope(64, 5e6), v_dim=128, v_scale=0.707)
    local = replace(full, kv_heads=8, rope=Rope(64, 1e4), window=129, sinks=True)
    moe, dense = MoE(256, 8, 2048, **latent.NOAUX), MLP(16384)
    mixers = [full, *((full if i % 6 == 5 else local) for i in range(1, 48))]
    layers = tuple(Layer(mixer, moe if i else dense, norm) for i, mixer in enumerate(mixers))
    stacks = stack_layers(layers)
    return Config(152576, 4096, stacks, norm, max_length=262144, family="mimo_v2_flash")


FAMILY = Family(
    model_type="mimo_v2_flash",
    architecture="MiMoV2FlashForCausalLM",
    table=(*tables.LLAMA, *SINKS, *tables.EXPERTS, latent.BIAS),
    from_hf=from_hf,
    to_hf=to_hf,
    # the defaults of the config class, which names this checkpoint, and the card's 256k tokens
    presets={"mimo-v2-flash": _flash()},
    extras=(INV_FREQ, r"model\.mtp\..*"),
)
