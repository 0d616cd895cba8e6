"""Kolibri 1 (Aleph Alpha, 2026).

Differs from Qwen3-MoE: norms stand on both sides of the parts; the router, in float32, ranks
experts by their logits and a bias, and weighs them by sigmoids; every layer has a shared expert;
layers with a window rotate, every fifth sees all and has no positions.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Config, Layer, Norm
from zoo.hf.keys import Keys
from zoo.hf.table import Row, Same
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.tables import IN_LAYER

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 128000,
    "hidden_size": 2560,
    "num_hidden_layers": 50,
    "num_attention_heads": 48,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "sliding_window": 513,
    "layer_types": None,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 6,
    "num_experts": 384,
    "norm_topk_prob": False,
    # In released files; the class takes them for granted.
    "head_dtype": "float32",
    "use_sliding_window": True,
}
# `mlp` is what transformers 5 calls the router in memory, and so the other norms.
BIAS = (
    Row(IN_LAYER + "moe.router.expert_bias", "moe/bias/b", Same()),
    Row(tables.IN_MLP + "gate.e_score_correction_bias", "moe/bias/b", Same()),
)
POST_NORMS = tuple(
    Row(f"{IN_LAYER}{name}.weight", f"{ours}_post_norm/scale", Same())
    for ours, names in (
        ("attn", ("post_attn_norm", "post_self_attn_layernorm")),
        ("ffn", ("post_ffn_norm", "post_mlp_layernorm")),
    )
    for name in names
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type kolibri1."""
    keys = Keys(hf, DEFAULTS)
    norm = Norm(keys.number("rms_norm_eps"))
    shared = MLP(keys.integer("shared_expert_intermediate_size"), keys.activation())
    moe = parts.experts(
        keys,
        score="sigmoid",
        select_bias=True,
        choose_logits=True,
        renormalize=bool(keys["norm_topk_prob"]),
        fp32_router=True,
        fp32_weights=True,
        shared=shared,
    )
    windows = parts.layer_windows(keys, parts.every(5, keys))
    mixers = parts.unturned(keys, windows, qkv_bias=False, qk_norm=norm)
    layers = tuple(Layer(mixer, moe, norm, "sandwich") for mixer in mixers)
    return parts.decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type kolibri1."""
    moe = cfg.layers[0].ffn
    return {
        **parts.common(cfg),
        **parts.heads(cfg.layers[0].mixer, bias=None),
        **parts.write_first_rope(cfg),
        **parts.windows(cfg),
        **parts.write_experts(moe),
        "shared_expert_intermediate_size": moe.shared.hidden,
        "norm_topk_prob": moe.renormalize,
    }


FAMILY = Family(
    model_type="kolibri1",
    architecture="Kolibri1ForCausalLM",
    table=(
        *tables.TOP,
        *tables.NORMS,
        *POST_NORMS,
        *tables.ATTENTION,
        *tables.QK_NORM,
        *tables.EXPERTS,
        *BIAS,
        *tables.shared_expert("shared_experts"),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    # the defaults of the config class, which names this checkpoint
    presets={"kolibri-1": from_hf({"model_type": "kolibri1"})},
)
