"""What descendants of DeepSeek share: keys of latent attention and of mixtures, and rows."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.config import MLA, MLP, Config, Layer, MoE, Norm, Rope
from zoo.hf.keys import Keys, activation_name
from zoo.hf.ropes import read_rope, write_rope, yarn_softmax_factor
from zoo.hf.table import Flat, Linear, Row, Same, Split
from zoo.models import parts, tables
from zoo.models.family import INV_FREQ
from zoo.models.parts import common
from zoo.models.tables import IN_ATTENTION, IN_MLP

DEFAULTS = {
    **parts.DEFAULTS,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_interleave": True,
}
"""What the config classes of all these families agree on."""

MOE_DEFAULTS = {
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    # Keys of the original files that name what these families always do.
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_nextn_predict_layers": 0,
    "num_mtp_layers": 0,
}

# Derived sizes, and how the released models were trained and served.
UNUSED = frozenset({"aux_loss_alpha", "ep_size", "head_dim", "qk_head_dim", "seq_aux"})

NOAUX = dict(score="sigmoid", select_bias=True, fp32_router=True, fp32_weights=True)
"""DeepSeek-V3's router without auxiliary loss, as fields of `MoE`."""

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
BIAS = Row(IN_MLP + "gate.e_score_correction_bias", "moe/bias/b", Same())
ROUTED = (*tables.EXPERTS, BIAS, *tables.shared_expert("shared_experts"))
TABLE = (*tables.TOP, *tables.NORMS, *LATENT, *tables.FFN, *ROUTED)
PREDICTING = (*TABLE, *tables.predictors(TABLE))
PREDICTORS = (INV_FREQ, r"model\.layers\.{layers}\..*")
"""Patterns of tensors to carry along: layers of multi-token prediction that are not read."""


def rotation(keys: Keys) -> Rope:
    """The rotation of `qk_rope_head_dim` elements, neighbours or, as the config says, halves."""
    return read_rope(keys, keys.integer("qk_rope_head_dim"), bool(keys["rope_interleave"]))


def attention(keys: Keys, rope: Rope | None, **fields) -> MLA:
    """Latent attention; the norms of its latents have eps 1e-6 whatever rms_norm_eps is."""
    if "bias" not in fields:
        fields["bias"] = bool(keys["attention_bias"])
    heads, kv_heads = keys.integer("num_attention_heads"), keys["num_key_value_heads"]
    if kv_heads not in (None, heads) and "num_key_value_heads" in keys:
        raise keys.error("num_key_value_heads", f"it must equal num_attention_heads={heads}")
    nope_dim = keys.integer("qk_nope_head_dim")
    return MLA(
        heads=heads,
        q_rank=None if keys["q_lora_rank"] is None else keys.integer("q_lora_rank"),
        kv_rank=keys.integer("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=keys.integer("qk_rope_head_dim"),
        v_dim=keys.integer("v_head_dim"),
        rope=rope,
        norm=Norm(1e-6),
        scale=softmax_scale(rope, nope_dim),
        **fields,
    )


def softmax_scale(rope: Rope | None, nope_dim: int) -> float | None:
    """The factor on scores, with YaRN's temperature; None where that is the default."""
    factor = 1.0 if rope is None else yarn_softmax_factor(rope)
    return None if factor == 1.0 else (nope_dim + rope.dim) ** -0.5 * factor


def mixture(
    keys: Keys, experts: str | None = None, shared: str = "n_shared_experts", **fields
) -> MoE:
    """Experts in groups, beside shared ones that are one MLP of their width.

    `experts` and `shared` are the family's keys for their numbers, `fields` those of the router.
    """
    act, bias = keys.activation(), keys.knows("mlp_bias") and bool(keys["mlp_bias"])
    hidden, beside = keys.integer("moe_intermediate_size"), keys.integer(shared)
    return MoE(
        experts=keys.integer(experts or keys.alias("n_routed_experts", "num_local_experts")),
        top_k=keys.integer("num_experts_per_tok"),
        hidden=hidden,
        act=act,
        scale=keys.number("routed_scaling_factor"),
        shared=MLP(hidden * beside, act, bias),
        **fields,
    )


def mixture_keys(
    moe: MoE, experts: str = "n_routed_experts", shared: str = "n_shared_experts"
) -> dict:
    """The config keys of `mixture` and `groups`."""
    return {
        "hidden_act": activation_name(moe.act),
        experts: moe.experts,
        shared: moe.shared.hidden // moe.hidden,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.hidden,
        "norm_topk_prob": moe.renormalize,
        "routed_scaling_factor": moe.scale,
        "n_group": moe.groups,
        "topk_group": moe.top_groups,
    }


def groups(keys: Keys) -> dict:
    """The fields of `MoE` that say which groups are chosen from, and how weights end."""
    return dict(
        groups=keys.integer("n_group"),
        top_groups=keys.integer("topk_group"),
        renormalize=bool(keys["norm_topk_prob"]),
    )


def model(keys: Keys, mixers: Sequence[MLA], moe: MoE, sparse: Sequence[bool], **fields) -> Config:
    """Layers with `moe` where `sparse` says so, a dense MLP elsewhere; then closes the config.

    `fields` are those of sparse layers; one more of these predicts further tokens, if any does.
    """
    norm = Norm(keys.number("rms_norm_eps"))
    found = layers(keys, mixers, moe, sparse, norm, **fields)
    depths = keys.count(keys.alias("num_nextn_predict_layers", "num_mtp_layers"))
    further = (Layer(mixers[0], moe, norm, **fields),) * depths
    return parts.decoder(keys, found, norm, mtp=further)


def layers(
    keys: Keys, mixers: Sequence, moe: MoE, sparse: Sequence[bool], norm: Norm, **fields
) -> tuple[Layer, ...]:
    """The layers of `model`."""
    dense = MLP(keys.integer("intermediate_size"), keys.activation(), moe.shared.bias)
    return tuple(
        Layer(mixer, moe, norm, **fields) if routed else Layer(mixer, dense, norm)
        for mixer, routed in zip(mixers, sparse, strict=True)
    )


def first_dense(keys: Keys) -> list[bool]:
    """Which layers are sparse where the first `first_k_dense_replace` are dense."""
    first = keys.integer("first_k_dense_replace", 0)
    return [i >= first for i in range(keys.integer("num_hidden_layers"))]


def attention_keys(a: MLA) -> dict:
    """The config keys of `attention`."""
    return {
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.heads,
        "q_lora_rank": a.q_rank,
        "kv_lora_rank": a.kv_rank,
        "qk_nope_head_dim": a.nope_dim,
        "qk_rope_head_dim": a.rope_dim,
        "v_head_dim": a.v_dim,
        "attention_bias": a.bias,
    } | ({} if a.rope is None else {"rope_interleave": a.rope.interleaved, **write_rope(a.rope)})


def keys_of(cfg: Config) -> dict:
    """The config keys of attention, dense layers and, if there are any, mixtures.

    Without them the defaults of the family's class speak of experts that no layer has.
    """
    found = [layer.ffn for layer in (*cfg.layers, *cfg.mtp)]
    moe = next((ffn for ffn in found if isinstance(ffn, MoE)), None)
    dense = next((ffn for ffn in found if isinstance(ffn, MLP)), moe)
    act = {"hidden_act": activation_name(dense.act)}
    return {
        **common(cfg),
        **attention_keys(next(la.mixer for la in cfg.layers if isinstance(la.mixer, MLA))),
        **(act if moe is None else mixture_keys(moe)),
        "intermediate_size": dense.hidden,
    }


def dense_first(cfg: Config) -> dict:
    """`first_k_dense_replace`."""
    return {"first_k_dense_replace": sum(isinstance(la.ffn, MLP) for la in cfg.layers)}


def depths(cfg: Config) -> dict:
    """`num_nextn_predict_layers`."""
    return {"num_nextn_predict_layers": len(cfg.mtp)}
