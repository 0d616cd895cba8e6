"""Mellum 2 (JetBrains, 2026): 12B-A2.5B.

Differs from Qwen3-MoE: layers of two kinds, which see a window or all and rotate differently, and
dense layers wherever `mlp_layer_types` says so. Only transformers 5 reads such configs, and only
with rope_parameters by layer type.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, YarnScaling, stack_layers
from zoo.hf.keys import Keys
from zoo.models import parts, tables
from zoo.models.family import INV_FREQ, Family
from zoo.models.parts import FULL, LOCAL, attention, common, decoder, layer_windows, windows

ROPES = parts.default_ropes(500_000.0, 10_000.0)
DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 98304,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_parameters": ROPES,
    "sliding_window": 1024,
    "layer_types": None,
    "mlp_layer_types": None,
    "moe_intermediate_size": 896,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": True,
    "num_mtp_layers": None,
    "num_nextn_predict_layers": None,
    "mtp_layer_types": None,
    "mtp_mlp_layer_types": None,
    # Of released files; the class has no such keys, and layer_types says the same.
    "use_sliding_window": True,
    "max_window_layers": 0,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type mellum."""
    keys = Keys(hf, DEFAULTS)
    norm, act, bias = Norm(keys.number("rms_norm_eps")), keys.activation(), keys["attention_bias"]
    dense = MLP(keys.integer("intermediate_size"), act)
    moe = parts.experts(keys, renormalize=bool(keys["norm_topk_prob"]))
    ropes = parts.ropes_by_kind(keys, partial=False)

    def layer(window: int | None, sparse: bool) -> Layer:
        rope = ropes[LOCAL if window else FULL]
        mixer = attention(keys, bias, rope=rope, qk_norm=norm, window=window)
        return Layer(mixer, moe if sparse else dense, norm)

    found = layer_windows(keys, [FULL] * keys.integer("num_hidden_layers"))
    sparse = parts.sparse_layers(keys, dense=0)
    layers = tuple(layer(*each) for each in zip(found, sparse, strict=True))
    depths = keys.alias("num_nextn_predict_layers", "num_mtp_layers")
    mtp = parts.one_predictor(keys, depths, lambda: layer(*_predictor(keys)))
    return decoder(keys, layers, norm, mtp=mtp)


def _predictor(keys: Keys) -> tuple[int | None, bool]:
    """Window of the layer that predicts further, and whether it is a mixture."""
    kinds, window = keys["mtp_layer_types"] or [LOCAL], keys["sliding_window"]
    if kinds not in ([FULL], [LOCAL]) or (kinds == [LOCAL] and not window):
        fix = f"it must be one of {FULL}, {LOCAL}, with sliding_window"
        raise keys.error("mtp_layer_types", fix)
    ffns = keys["mtp_mlp_layer_types"] or ["sparse"]
    if ffns not in (["sparse"], ["dense"]):
        raise keys.error("mtp_mlp_layer_types", "it must be one of sparse, dense")
    return window if kinds == [LOCAL] else None, ffns == ["sparse"]


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type mellum."""
    a = cfg.layers[0].mixer
    moe, dense = parts.ffns(cfg)
    return {
        **common(cfg),
        **parts.head_sizes(a),
        **parts.write_ropes_by_kind(cfg, ROPES),
        **windows(cfg),
        "intermediate_size": dense.hidden,
        **parts.ffn_types(cfg),
        **parts.write_experts(moe),
        "norm_topk_prob": moe.renormalize,
        "num_nextn_predict_layers": len(cfg.mtp),
        **(_predictor_keys(cfg.mtp[0]) if cfg.mtp else {}),
    }


def _predictor_keys(layer: Layer) -> dict:
    """The config keys of `_predictor`."""
    return {
        "mtp_layer_types": [LOCAL if layer.mixer.window else FULL],
        "mtp_mlp_layer_types": ["dense" if isinstance(layer.ffn, MLP) else "sparse"],
    }


def _mellum2() -> Config:
    """The released config.json, as two copies of it outside of its repository say."""
    norm = Norm(1e-6)
    yarn = YarnScaling(16.0, 8192, 32.0, 1.0, attention_factor=1.2772588722239782)
    local, full = (
        Attention(32, 4, 128, Rope(128, 5e5, scaling=scaling), window, qk_norm=norm)
        for scaling, window in ((None, 1024), (yarn, None))
    )
    moe = MoE(64, 8, 896)
    layers = tuple(Layer(full if i % 4 == 3 else local, moe, norm) for i in range(28))
    length, family = 131072, "mellum"
    return Config(98304, 2304, stack_layers(layers), norm, max_length=length, family=family)


_TABLE = (*tables.LLAMA, *tables.QK_NORM, *tables.EXPERTS)

FAMILY = Family(
    model_type="mellum",
    architecture="MellumForCausalLM",
    table=(*_TABLE, *tables.named_predictor(_TABLE)),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"mellum2-12b-a2.5b": _mellum2()},
    extras=(INV_FREQ, r"mtp\..*"),
)
