"""GLM-4.5, 4.5-Air, 4.6, 4.7 (arXiv:2508.06471).

Differs from Llama: biases on q, k and v but not on o, rotary positions on half of each head, in the
larger models a norm on each head of q and k, and DeepSeek-V3's mixtures of experts and layers of
multi-token prediction.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import read_rope
from zoo.models import latent, parts, tables
from zoo.models.family import INV_FREQ, Family
from zoo.models.latent import mixture_keys
from zoo.models.parts import attention, common, decoder, head_dim, heads

MOE_DEFAULTS = {
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    # Keys of the original files that name what this router always does.
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": None,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "use_qk_norm": False,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "num_mtp_layers": 0,
    **MOE_DEFAULTS,
}
ROUTER, ROUTED = latent.NOAUX, latent.ROUTED


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type glm4_moe."""
    keys = Keys(hf, DEFAULTS)
    norm = Norm(keys.number("rms_norm_eps"))
    rope = read_rope(keys, head_dim(keys), partial=True)
    mixer = attention(keys, rope=rope, qk_norm=norm if keys["use_qk_norm"] else None)
    moe = mixture(keys, keys.alias("n_routed_experts", "num_local_experts"), "n_shared_experts")
    dense = (MLP(keys.integer("intermediate_size"), moe.act),)
    first, count = keys.integer("first_k_dense_replace", 0), keys.integer("num_hidden_layers")
    ffns = (dense * first + (moe,) * (count - first))[:count]
    depths = keys.count(keys.alias("num_nextn_predict_layers", "num_mtp_layers"))
    layers = tuple(Layer(mixer, ffn, norm) for ffn in ffns)
    return decoder(keys, layers, norm, mtp=(Layer(mixer, moe, norm),) * depths)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type glm4_moe."""
    a = cfg.layers[0].mixer
    moe, dense = parts.ffns(cfg)
    return {
        **common(cfg),
        **heads(a),
        "partial_rotary_factor": a.rope.dim / a.head_dim,
        "use_qk_norm": a.qk_norm is not None,
        "intermediate_size": dense.hidden,
        **latent.dense_first(cfg),
        **mixture_keys(moe, "n_routed_experts", "n_shared_experts"),
        "num_nextn_predict_layers": len(cfg.mtp),
    }


def mixture(keys: Keys, experts: str, shared: str) -> MoE:
    """DeepSeek-V3's mixture; `experts` and `shared` are the family's keys for their numbers."""
    return latent.mixture(keys, experts, shared, **ROUTER, **latent.groups(keys))


def _preset(layers, d, dense, f, experts, hidden, scale, length, qk_norm=True) -> Config:
    norm = Norm(1e-5)
    head_norm = norm if qk_norm else None
    mixer = Attention(96, 8, 128, Rope(64, 1e6), qk_norm=head_norm, qkv_bias=True)
    moe = Layer(mixer, MoE(experts, 8, hidden, scale=scale, shared=MLP(hidden), **ROUTER), norm)
    stacks = stack_layers((Layer(mixer, MLP(f), norm),) * dense + (moe,) * (layers - dense))
    return Config(151552, d, stacks, norm, max_length=length, family="glm4_moe", mtp=(moe,))


_LARGE = 92, 5120, 3, 12288, 160, 1536, 2.5
_TABLE = (*tables.LLAMA, *tables.QK_NORM, *ROUTED)

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    table=(*_TABLE, *tables.predictors(_TABLE)),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "glm-4.5-air": _preset(46, 4096, 1, 10944, 128, 1408, 1.0, 131072, qk_norm=False),
        "glm-4.5": _preset(*_LARGE, 131072),
        "glm-4.6": _preset(*_LARGE, 202752),
        "glm-4.7": _preset(*_LARGE, 202752),
    },
    extras=(INV_FREQ, r"model\.layers\.{layers}\..*"),
    copies=tables.PREDICTOR_COPIES,
)
