"""MiniMax-M2, M2.1 and M2.5 (MiniMax, 2025): 230B-A10B.

Differs from Mixtral: RMSNorm over all heads of q and over all heads of k together, rotary positions
on the first `rotary_dim` elements of a head, and a sigmoid router in the model's dtype with a
selection bias, which the original files keep beside the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import read_rope
from zoo.hf.table import Row, Same
from zoo.models import mixtral, parts, tables
from zoo.models.family import INV_FREQ, Family
from zoo.models.parts import attention, common, decoder, head_dim, heads

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 196608,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5_000_000.0,
    "num_experts_per_tok": 8,
    "num_local_experts": 256,
    "rotary_dim": None,
    # Keys of the original files that name what this family always does.
    "qk_norm_type": "per_layer",
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "sliding_window": None,
    "use_qk_norm": True,
    "use_routing_bias": True,
}
# Of training, of layers of multi-token prediction that no released file holds, and of MiniMax-01.
UNUSED = frozenset({
    "attn_type_list", "layernorm_full_attention_beta", "layernorm_linear_attention_beta",
    "layernorm_mlp_beta", "mlp_intermediate_size", "mtp_transformer_layers", "num_mtp_modules",
    "router_jitter_noise", "shared_moe_mode", "use_mtp",
})  # fmt: skip

BIAS = "e_score_correction_bias"
BIASES = (
    Row(mixtral.IN_MOE + BIAS, "moe/bias/b", Same()),
    Row(tables.IN_MLP + BIAS, "moe/bias/b", Same()),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type minimax_m2."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, h = Norm(keys.number("rms_norm_eps")), head_dim(keys)
    rope = read_rope(keys, h, partial=True)
    if keys["rotary_dim"] is not None and rope.dim == h:
        rope = replace(rope, dim=keys.integer("rotary_dim"))
    mixer = attention(keys, qkv_bias=False, rope=rope, qk_norm=norm, norm_heads=True)
    moe = parts.experts(
        keys, "num_local_experts", "intermediate_size", "num_experts",
        score="sigmoid", select_bias=True, fp32_weights=True,
    )  # fmt: skip
    return decoder(keys, (Layer(mixer, moe, norm),) * keys.integer("num_hidden_layers"), norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type minimax_m2."""
    mixer, moe = cfg.layers[0].mixer, cfg.layers[0].ffn
    return {
        **common(cfg),
        **heads(mixer),
        "rotary_dim": mixer.rope.dim,
        **parts.write_experts(moe, "num_local_experts", "intermediate_size"),
    }


_NORM = Norm(1e-6)
_LAYER = Layer(
    Attention(48, 8, 128, Rope(64, 5e6), qk_norm=_NORM, norm_heads=True),
    MoE(256, 8, 1536, score="sigmoid", select_bias=True, fp32_weights=True),
    _NORM,
)
_M2 = Config(
    200064, 3072, stack_layers((_LAYER,) * 62), _NORM, max_length=196608, family="minimax_m2"
)

FAMILY = Family(
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    table=(
        *tables.TOP,
        *tables.NORMS,
        *tables.ATTENTION,
        *tables.QK_NORM,
        *mixtral.EXPERTS,
        *BIASES,
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "minimax-m2": _M2,
        "minimax-m2.1": _M2,
        "minimax-m2.5": _M2,
        "minimax-m2.7": replace(_M2, max_length=204800),
    },
    extras=(INV_FREQ, r"model\.mtp_modules\..*"),
)
