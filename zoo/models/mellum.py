"""Mellum 2 (JetBrains, 2026): 12B-A2.5B.

Differs from Qwen3-MoE: layers of two kinds, which see a window or all and rotate differently, and
dense layers wherever `mlp_layer_types` says so. Only transformers 5 reads such configs, and only
with rope_parameters by layer type. No presets: the released layer types are not known here.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Config, Layer, MoE, Norm
from zoo.hf.keys import Keys, activation_name, read_rope, write_rope
from zoo.models import parts
from zoo.models.family import INV_FREQ, Family
from zoo.models.parts import attention, common, decoder, head_dim, layer_windows, windows

DEFAULTS = {
    "vocab_size": 98304,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": 1024,
    "layer_types": None,
    "mlp_layer_types": None,
    "moe_intermediate_size": 896,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": True,
}
# Layers of multi-token prediction, whose tensors are carried along.
UNUSED = frozenset({
    "mtp_layer_types", "mtp_mlp_layer_types", "num_mtp_layers", "num_nextn_predict_layers",
})  # fmt: skip
KINDS = {True: "full_attention", False: "sliding_attention"}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type mellum."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, act, bias = Norm(float(keys["rms_norm_eps"])), keys.activation(), keys["attention_bias"]
    dense = MLP(keys.integer("intermediate_size"), act)
    moe = MoE(
        experts=keys.integer(keys.alias("num_experts", "num_local_experts")),
        top_k=keys.integer("num_experts_per_tok"),
        hidden=keys.integer("moe_intermediate_size"),
        act=act,
        renormalize=bool(keys["norm_topk_prob"]),
    )
    found = layer_windows(keys, ["full_attention"] * keys.integer("num_hidden_layers"))
    ropes = {w: read_rope(keys, head_dim(keys), layer_type=KINDS[w is None]) for w in set(found)}
    layers = tuple(
        Layer(
            attention(keys, bias, rope=ropes[window], qk_norm=norm, window=window),
            moe if sparse else dense,
            norm,
        )
        for window, sparse in zip(found, parts.sparse_layers(keys, dense=0), strict=True)
    )
    cfg = decoder(keys, layers, norm)
    keys.close()
    return cfg


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type mellum."""
    a = cfg.layers[0].mixer
    moe = next(la.ffn for la in cfg.layers if isinstance(la.ffn, MoE))
    dense = [la.ffn for la in cfg.layers if isinstance(la.ffn, MLP)]
    return {
        **common(cfg),
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "attention_bias": a.qkv_bias,
        "rope_parameters": _rope_parameters(cfg),
        **windows(cfg),
        "intermediate_size": dense[0].hidden if dense else moe.hidden,
        "hidden_act": activation_name(moe.act),
        "mlp_layer_types": parts.mlp_layer_types(cfg)["mlp_layer_types"],
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.hidden,
        "norm_topk_prob": moe.renormalize,
    }


def _rope_parameters(cfg: Config) -> dict:
    """A rotation per kind of layer; a kind that no layer has gets the default."""
    found = dict(DEFAULTS["rope_parameters"])
    for layer in cfg.layers:
        old = write_rope(layer.mixer.rope)
        scaling = old["rope_scaling"] or {"rope_type": "default"}
        found[KINDS[layer.mixer.window is None]] = {"rope_theta": old["rope_theta"], **scaling}
    return found


FAMILY = Family(
    model_type="mellum",
    architecture="MellumForCausalLM",
    table=(
        *parts.TOP,
        *parts.NORMS,
        *parts.ATTENTION,
        *parts.QK_NORM,
        *parts.FFN,
        *parts.EXPERTS,
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={},
    extras=(INV_FREQ, r"mtp\..*"),
)
