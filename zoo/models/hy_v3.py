"""Hy3 (Tencent, 2026): 295B-A21B.

Differs from Qwen3-MoE: one dense layer first, then mixtures with a sigmoid router in float32, a
selection bias, a factor on the weights, and shared experts (one MLP of their width). The layer of
multi-token prediction is numbered as one more, and ends with its `final_layernorm`; embeddings and
head are those of the model, whatever the file holds beside that layer.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.table import Linear, Row, Same
from zoo.models import parts, tables
from zoo.models.family import INV_FREQ, Family
from zoo.models.glm4_moe import ROUTER
from zoo.models.parts import attention, common, decoder, heads

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 120832,
    "hidden_size": 4096,
    "intermediate_size": 13312,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 11_158_840.0,
    "mlp_bias": False,
    "num_experts": 192,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "moe_intermediate_size": 1536,
    "router_scaling_factor": 2.826,
    "mlp_layer_types": None,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,  # the class has no such key
}
UNUSED = frozenset({"enable_moe_fp32_combine"})  # the type that the experts are added in

ROUTED = (  # names on disk, then those that transformers has in memory
    Row(tables.IN_MLP + "router.gate.weight", "moe/router/w", Linear()),
    Row(tables.IN_MLP + "expert_bias", "moe/bias/b", Same()),
    Row(tables.IN_MLP + "e_score_correction_bias", "moe/bias/b", Same()),
    *tables.shared_expert("shared_mlp"),
    *tables.shared_expert("shared_experts"),
    *tables.EXPERTS,
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type hy_v3."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, act, bias = Norm(keys.number("rms_norm_eps")), keys.activation(), bool(keys["mlp_bias"])
    mixer = attention(keys, keys["attention_bias"], qk_norm=norm)
    dense = MLP(keys.integer("intermediate_size"), act, bias)
    hidden = keys.integer("moe_intermediate_size")
    moe = MoE(
        experts=keys.integer(keys.alias("num_experts", "num_local_experts")),
        top_k=keys.integer("num_experts_per_tok"),
        hidden=hidden,
        act=act,
        scale=keys.number("router_scaling_factor"),
        shared=MLP(hidden * keys.integer("num_shared_experts"), act, bias),
        **ROUTER,
    )
    sparse = parts.sparse_layers(keys, keys.integer("first_k_dense_replace", 0))
    layers = tuple(Layer(mixer, moe if routed else dense, norm) for routed in sparse)
    further = Layer(mixer, moe, norm)
    mtp = parts.one_predictor(keys, "num_nextn_predict_layers", lambda: further)
    return decoder(keys, layers, norm, mtp=mtp)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type hy_v3."""
    moe, dense = parts.ffns(cfg)
    return {
        **common(cfg),
        **heads(cfg.layers[0].mixer),
        "intermediate_size": dense.hidden,
        "mlp_bias": moe.shared.bias,
        **parts.write_experts(moe),
        "num_shared_experts": moe.shared.hidden // moe.hidden,
        "router_scaling_factor": moe.scale,
        **parts.mlp_layer_types(cfg),
        "num_nextn_predict_layers": len(cfg.mtp),
    }


_NORM = Norm(1e-5)
_MIXER = Attention(64, 8, 128, Rope(128, 11_158_840.0), qk_norm=_NORM)
_MOE = MoE(192, 8, 1536, scale=2.826, shared=MLP(1536), **ROUTER)
_ROUTED = Layer(_MIXER, _MOE, _NORM)
_LAYERS = stack_layers((Layer(_MIXER, MLP(13312), _NORM), *(_ROUTED,) * 79))
_TABLE = (*tables.LLAMA, *tables.QK_NORM, *ROUTED)

FAMILY = Family(
    model_type="hy_v3",
    architecture="HYV3ForCausalLM",
    table=(*_TABLE, *tables.predictors(_TABLE, norm="final_layernorm")),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        # the defaults of the config class, which names this checkpoint
        "hy3-preview": Config(
            120832, 4096, _LAYERS, _NORM, max_length=131072, family="hy_v3", mtp=(_ROUTED,)
        ),
    },
    extras=(INV_FREQ, r"model\.layers\.{layers}\..*"),
)
