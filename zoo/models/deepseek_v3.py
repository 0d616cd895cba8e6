"""DeepSeek-V3 (arXiv:2412.19437), R1 (arXiv:2501.12948), V3.1, and Kimi K2 (arXiv:2507.20534).

Differs from Llama: multi-head latent attention with interleaved rotary positions; YaRN, whose
temperature multiplies the softmax scale; `first_k_dense_replace` dense layers, then mixtures of
experts with a sigmoid router in float32, a selection bias, groups, and shared experts (one MLP of
their width). The latent norms' eps is 1e-6 whatever rms_norm_eps is. Layers of multi-token
prediction follow the last layer; transformers leaves them out when it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import MLA, MLP, Config, Layer, MoE, Norm, Rope, YarnScaling, stack_layers
from zoo.hf.keys import Keys, activation_name, read_rope, write_rope, yarn_softmax_factor
from zoo.hf.table import Flat, Linear, Row, Same, Split
from zoo.models import parts
from zoo.models.family import INV_FREQ, Family
from zoo.models.parts import IN_ATTENTION, common, decoder

DEFAULTS = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_interleave": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    # Keys of the original files that name what this family always does.
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_nextn_predict_layers": 0,
    "num_mtp_layers": 0,
}
# Derived sizes, and how the released models were trained and served.
UNUSED = frozenset({
    "aux_loss_alpha", "ep_size", "head_dim", "qk_head_dim", "seq_aux",
})  # fmt: skip

KV_DOWN = ("attn/kv_down/w", "attn/k_rope/w")
LATENT = (
    Row(IN_ATTENTION + "q_proj.weight", "attn/q/w", Linear()),
    Row(IN_ATTENTION + "q_a_proj.weight", "attn/q_down/w", Linear()),
    Row(IN_ATTENTION + "q_a_proj.bias", "attn/q_down/b", Same()),
    Row(IN_ATTENTION + "q_a_layernorm.weight", "attn/q_norm/scale", Same()),
    Row(IN_ATTENTION + "q_b_proj.weight", "attn/q_up/w", Linear()),
    Row(IN_ATTENTION + "kv_a_proj_with_mqa.weight", KV_DOWN, Split(-1, Linear())),
    Row(
        IN_ATTENTION + "kv_a_proj_with_mqa.bias",
        ("attn/kv_down/b", "attn/k_rope/b"),
        Split(-1, Flat()),
    ),
    Row(IN_ATTENTION + "kv_a_layernorm.weight", "attn/kv_norm/scale", Same()),
    Row(IN_ATTENTION + "kv_b_proj.weight", ("attn/k_up/w", "attn/v_up/w"), Split(-1, Linear())),
    Row(IN_ATTENTION + "o_proj.weight", "attn/o/w", Linear(ins=2)),
    Row(IN_ATTENTION + "o_proj.bias", "attn/o/b", Same()),
)
ROUTED = (
    *parts.EXPERTS,
    Row(parts.IN_MLP + "gate.e_score_correction_bias", "moe/bias/b", Same()),
    Row(parts.IN_MLP + "shared_experts.gate_proj.weight", "moe/shared/gate/w", Linear()),
    Row(parts.IN_MLP + "shared_experts.up_proj.weight", "moe/shared/up/w", Linear()),
    Row(parts.IN_MLP + "shared_experts.down_proj.weight", "moe/shared/down/w", Linear()),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type deepseek_v3 (or kimi_k2, which has the same keys)."""
    keys = Keys({**hf, "model_type": "deepseek_v3"}, DEFAULTS, UNUSED)
    norm, act = Norm(float(keys["rms_norm_eps"])), keys.activation()
    mixer = _attention(keys)
    dense, first = (
        MLP(keys.integer("intermediate_size"), act),
        keys.integer("first_k_dense_replace"),
    )
    hidden, shared = keys.integer("moe_intermediate_size"), keys.integer("n_shared_experts")
    moe = MoE(
        experts=keys.integer(keys.alias("n_routed_experts", "num_local_experts")),
        top_k=keys.integer("num_experts_per_tok"),
        hidden=hidden,
        act=act,
        score="sigmoid",
        renormalize=bool(keys["norm_topk_prob"]),
        scale=float(keys["routed_scaling_factor"]),
        select_bias=True,
        groups=keys.integer("n_group"),
        top_groups=keys.integer("topk_group"),
        fp32_router=True,
        fp32_weights=True,
        shared=MLP(hidden * shared, act),
    )
    layers = tuple(
        Layer(mixer, dense if i < first else moe, norm)
        for i in range(keys.integer("num_hidden_layers"))
    )
    depths = keys.integer(keys.alias("num_nextn_predict_layers", "num_mtp_layers"))
    cfg = replace(decoder(keys, layers, norm), mtp=(Layer(mixer, moe, norm),) * depths)
    keys.close()
    return cfg


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type deepseek_v3."""
    a = cfg.layers[0].mixer
    moe = next(la.ffn for la in cfg.layers if isinstance(la.ffn, MoE))
    dense = [la.ffn for la in cfg.layers if isinstance(la.ffn, MLP)]
    return {
        **common(cfg),
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.heads,
        "q_lora_rank": a.q_rank,
        "kv_lora_rank": a.kv_rank,
        "qk_nope_head_dim": a.nope_dim,
        "qk_rope_head_dim": a.rope_dim,
        "v_head_dim": a.v_dim,
        "attention_bias": a.bias,
        "rope_interleave": a.rope.interleaved,
        **write_rope(a.rope),
        "hidden_act": activation_name(moe.act),
        "intermediate_size": dense[0].hidden if dense else moe.hidden,
        "first_k_dense_replace": len(dense),
        "moe_intermediate_size": moe.hidden,
        "n_shared_experts": moe.shared.hidden // moe.hidden,
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "n_group": moe.groups,
        "topk_group": moe.top_groups,
        "norm_topk_prob": moe.renormalize,
        "routed_scaling_factor": moe.scale,
        "num_nextn_predict_layers": len(cfg.mtp),
    }


def _attention(keys: Keys) -> MLA:
    rope_dim, nope_dim = keys.integer("qk_rope_head_dim"), keys.integer("qk_nope_head_dim")
    rope = read_rope(keys, rope_dim, bool(keys["rope_interleave"]))
    heads, kv_heads = keys.integer("num_attention_heads"), keys["num_key_value_heads"]
    if kv_heads not in (None, heads) and "num_key_value_heads" in keys:
        raise keys.error("num_key_value_heads", f"it must equal num_attention_heads={heads}")
    return MLA(
        heads=heads,
        q_rank=None if keys["q_lora_rank"] is None else keys.integer("q_lora_rank"),
        kv_rank=keys.integer("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        v_dim=keys.integer("v_head_dim"),
        rope=rope,
        norm=Norm(1e-6),
        bias=bool(keys["attention_bias"]),
        scale=_scale(rope, nope_dim),
    )


def _scale(rope: Rope, nope_dim: int) -> float | None:
    factor = yarn_softmax_factor(rope)
    return None if factor == 1.0 else (nope_dim + rope.dim) ** -0.5 * factor


def _preset(vocab, heads, dense, theta, length, scaling, moe, depths) -> Config:
    norm, rope = Norm(1e-6), Rope(64, theta, interleaved=True, scaling=scaling)
    mixer = MLA(heads, 1536, 512, 128, 64, 128, rope, scale=_scale(rope, 128))
    layers = (Layer(mixer, MLP(18432), norm),) * dense + (Layer(mixer, moe, norm),) * (61 - dense)
    predictors = (Layer(mixer, moe, norm),) * depths
    return Config(
        vocab, 7168, stack_layers(layers), norm, max_length=length, family="deepseek_v3",
        mtp=predictors,
    )  # fmt: skip


def _moe(experts, scale, groups, top_groups) -> MoE:
    router = dict(score="sigmoid", scale=scale, select_bias=True)
    grouped = dict(groups=groups, top_groups=top_groups, fp32_router=True, fp32_weights=True)
    return MoE(experts, 8, 2048, shared=MLP(2048), **router, **grouped)


_V3_YARN = YarnScaling(40.0, 4096, 32.0, 1.0, 1.0, 1.0)
_K2_YARN = YarnScaling(32.0, 4096, 1.0, 1.0, 1.0, 1.0)
_V3 = _preset(129280, 128, 3, 1e4, 163840, _V3_YARN, _moe(256, 2.5, 8, 4), 1)
_K2 = _preset(163840, 64, 1, 5e4, 131072, _K2_YARN, _moe(384, 2.827, 1, 1), 0)

_TABLE = (*parts.TOP, *parts.NORMS, *LATENT, *parts.FFN, *ROUTED)
FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    table=(*_TABLE, *parts.predictors(_TABLE)),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"deepseek-v3": _V3, "deepseek-r1": _V3, "deepseek-v3.1": _V3, "kimi-k2": _K2},
    aliases=("kimi_k2",),
    extras=(INV_FREQ, r"model\.layers\.{layers}\..*"),
    copies=parts.PREDICTOR_COPIES,
)
