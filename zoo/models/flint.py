"""Flint (RecursiveSI, 2026).

Differs from Qwen3-MoE: the router's scores are sigmoids in float32; every mixture has a shared
expert; norms multiply in float32; heads have sinks; layers with a window rotate, the others see all
and have no positions.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Config, Layer, Norm
from zoo.hf.keys import Keys
from zoo.hf.table import Row, Same
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.parts import common, decoder, layer_windows

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 150144,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 49,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "sliding_window": 513,
    "layer_types": None,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 1024,
    "num_experts_per_tok": 6,
    "num_experts": 256,
    "norm_topk_prob": True,
}
SINKS = (
    Row(tables.IN_ATTENTION + "softmax_offset", "attn/sinks", Same()),
    Row(tables.IN_ATTENTION + "sinks", "attn/sinks", Same()),  # as in memory
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type flint."""
    keys = Keys(hf, DEFAULTS)
    norm, act = Norm(keys.number("rms_norm_eps"), wide=True), keys.activation()
    dense = MLP(keys.integer("intermediate_size"), act)
    moe = parts.experts(
        keys,
        score="sigmoid",
        renormalize=bool(keys["norm_topk_prob"]),
        fp32_router=True,
        fp32_weights=True,
        shared=MLP(keys.integer("shared_expert_intermediate_size"), act),
    )
    windows, sparse = layer_windows(keys, _kinds(keys)), parts.stepped_layers(keys, (0, 1))
    bias, fields = keys["attention_bias"], dict(qk_norm=norm, sinks=True)
    layers = tuple(
        Layer(mixer, moe if routed else dense, norm)
        for mixer, routed in zip(
            parts.unturned(keys, windows, o_bias=bias, **fields), sparse, strict=True
        )
    )
    return decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type flint."""
    a = next(la.mixer for la in cfg.layers if la.mixer.rope is not None)
    moe, dense = parts.ffns(cfg)
    return {
        **common(cfg),
        **parts.heads(a),
        **parts.windows(cfg),
        "intermediate_size": dense.hidden,
        **parts.write_stepped_layers(cfg),
        **parts.write_experts(moe),
        "shared_expert_intermediate_size": moe.shared.hidden,
        "norm_topk_prob": moe.renormalize,
    }


def _kinds(keys: Keys) -> list[str]:
    """The first two layers, every fourth from the second on, and the last see all."""
    layers = keys.integer("num_hidden_layers")
    full = {0, layers - 1, *range(1, layers, 4)}
    return ["full_attention" if i in full else "sliding_attention" for i in range(layers)]


FAMILY = Family(
    model_type="flint",
    architecture="FlintForCausalLM",
    table=(
        *tables.LLAMA,
        *tables.QK_NORM,
        *SINKS,
        *tables.EXPERTS,
        *tables.shared_expert("shared_expert"),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    # the defaults of the config class, which names this checkpoint
    presets={"flint": from_hf({"model_type": "flint"})},
)
