"""Kimi Linear (arXiv:2510.26692): Kimi-Linear-48B-A3B.

Differs from DeepSeek-V3: three layers of four are Kimi Delta Attention, whose state decays by key
channel; the fourth is multi-head latent attention without positions. Files number these layers from
1, and keep names of their own for experts; transformers writes the dense layers among them.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLA, MLP, Config, GatedDelta, Layer, MoE, Norm
from zoo.hf.keys import Keys
from zoo.hf.table import Depthwise, Flat, Linear, Row, Same, Shaped
from zoo.models import latent, parts, tables
from zoo.models.family import Family
from zoo.models.latent import LATENT
from zoo.models.tables import IN_ATTENTION, IN_LAYER

LINEAR, FULL = "linear_attention", "full_attention"
DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 163840,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "num_shared_experts": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_expert_group": 1,
    "topk_group": 1,
    "moe_renormalize": True,
    "routed_scaling_factor": 2.446,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "model_max_length": 1048576,
    "rms_norm_eps": 1e-5,
    "layer_types": None,
    "mlp_layer_types": None,
    "linear_attn_config": None,
    "linear_head_dim": 128,
    "linear_num_heads": 32,
    "linear_conv_kernel_dim": 4,
    # Keys of the released file that name what this family always does.
    "first_k_dense_replace": 1,
    "mla_use_nope": True,
    "moe_layer_freq": 1,
    "moe_router_activation_func": "sigmoid",
    "num_nextn_predict_layers": 0,
    "use_grouped_topk": True,
}
UNUSED = frozenset({"head_dim", "qk_head_dim"})  # derived
NAMES = {  # what DeepSeek-V3 and others call keys -> this family's names
    "max_position_embeddings": "model_max_length",
    "n_group": "num_expert_group",
    "norm_topk_prob": "moe_renormalize",
    "num_experts_per_tok": "num_experts_per_token",
}

IN_MOE = IN_LAYER + "block_sparse_moe."
DELTA = (
    *(Row(f"{IN_ATTENTION}{x}_proj.weight", f"delta/{x}/w", Linear()) for x in "qkv"),
    *(Row(f"{IN_ATTENTION}{x}_conv1d.weight", f"delta/{x}_conv/w", Depthwise()) for x in "qkv"),
    Row(IN_ATTENTION + "A_log", "delta/a_log", Shaped((1, 1, None, None))),
    Row(IN_ATTENTION + "dt_bias", "delta/dt_bias", Flat()),
    Row(IN_ATTENTION + "f_a_proj.weight", "delta/decay_down/w", Linear()),
    Row(IN_ATTENTION + "f_b_proj.weight", "delta/decay_up/w", Linear()),
    Row(IN_ATTENTION + "b_proj.weight", "delta/beta/w", Linear()),
    Row(IN_ATTENTION + "g_a_proj.weight", "delta/gate_down/w", Linear()),
    Row(IN_ATTENTION + "g_b_proj.weight", "delta/gate_up/w", Linear()),
    Row(IN_ATTENTION + "o_norm.weight", "delta/norm/scale", Same()),
    Row(IN_ATTENTION + "o_proj.weight", "delta/o/w", Linear(ins=3)),
)
ROUTED = (
    *tables.numbered_experts(IN_MOE),
    Row(IN_MOE + "gate.e_score_correction_bias", "moe/bias/b", Same()),
    *tables.shared_expert("shared_experts", IN_MOE),
)
DENSE_AMONG_EXPERTS = tables.gated_mlp(IN_MOE, "mlp")  # as transformers saves it


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type kimi_linear."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, act = Norm(keys.number("rms_norm_eps")), keys.activation()
    sizes = _linear_config(keys)
    mixers = {LINEAR: _delta(keys, sizes), FULL: latent.attention(keys, None, bias=False)}
    dense, moe = MLP(keys.integer("intermediate_size"), act), _moe(keys)
    sparse = parts.sparse_layers(keys, keys.integer("first_k_dense_replace", 0))
    layers = tuple(
        Layer(mixers[kind], moe if routed else dense, norm)
        for kind, routed in zip(_mixer_kinds(keys, sizes), sparse, strict=True)
    )
    return parts.decoder(keys, layers, norm, max_length=keys.integer("model_max_length"))


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type kimi_linear."""
    moe, dense = parts.ffns(cfg)
    linear, full = (
        {n: la.mixer for n, la in enumerate(cfg.layers, 1) if isinstance(la.mixer, kind)}
        for kind in (GatedDelta, MLA)
    )
    delta = next(iter(linear.values()))
    keys = {
        **parts.common(cfg),
        "linear_attn_config": {
            "kda_layers": list(linear),
            "full_attn_layers": list(full),
            "head_dim": delta.k_dim,
            "num_heads": delta.k_heads,
            "short_conv_kernel_size": delta.conv,
        },
        "mla_use_nope": True,
        **latent.attention_keys(next(iter(full.values()))),
        "intermediate_size": dense.hidden,
        **latent.dense_first(cfg),
        **parts.ffn_types(cfg),
        **latent.mixture_keys(moe, "num_experts", "num_shared_experts"),
        "moe_router_activation_func": "sigmoid",
    }
    return {NAMES.get(key, key): value for key, value in keys.items()}


def _linear_config(keys: Keys) -> Keys:
    """linear_attn_config, which wins over keys beside it."""
    beside = {
        "head_dim": keys.integer("linear_head_dim"),
        "num_heads": keys.integer("linear_num_heads"),
        "short_conv_kernel_size": keys.integer("linear_conv_kernel_dim"),
        "kda_layers": None,
        "full_attn_layers": None,
    }
    inner = {**(keys["linear_attn_config"] or {}), "model_type": f"{keys.family} linear_attn"}
    return Keys(inner, beside)


def _delta(keys: Keys, sizes: Keys) -> GatedDelta:
    n, dim = sizes.integer("num_heads"), sizes.integer("head_dim")
    norm = Norm(keys.number("rms_norm_eps"), wide=True)
    conv = sizes.integer("short_conv_kernel_size")
    fields = dict(act=keys.activation(), gate_act="sigmoid", decay_rank=dim, gate_rank=dim)
    return GatedDelta(n, n, dim, dim, conv, norm=norm, **fields)


def _moe(keys: Keys) -> MoE:
    return latent.mixture(
        keys, "num_experts", "num_shared_experts", "num_experts_per_token",
        renormalize=bool(keys["moe_renormalize"]), groups=keys.integer("num_expert_group"),
        top_groups=keys.integer("topk_group"), **latent.NOAUX,
    )  # fmt: skip


def _mixer_kinds(keys: Keys, sizes: Keys) -> list[str]:
    """By layer_types, else by linear_attn_config's numbers, else every fourth after the first."""
    layers, kinds = keys.integer("num_hidden_layers"), keys["layer_types"]
    linear, full = sizes["kda_layers"], sizes["full_attn_layers"]
    sizes.close()
    if kinds is None and linear is not None and full is not None:
        named = dict.fromkeys(linear, LINEAR) | dict.fromkeys(full, FULL)
        if named.keys() != set(range(1, layers + 1)):
            raise keys.error("linear_attn_config", f"it must name each of layers 1 to {layers}")
        return [named[n] for n in range(1, layers + 1)]
    every = [FULL if i and i % 4 == 0 else LINEAR for i in range(layers)]
    return parts.kinds(keys, "layer_types", (LINEAR, FULL), every)


def _48b() -> Config:
    """The defaults of the config class, which names this checkpoint, and which layers are which."""
    full = [*range(4, 27, 4), 27]
    linear = [n for n in range(1, 28) if n not in full]
    layers = {"linear_attn_config": {"kda_layers": linear, "full_attn_layers": full}}
    return from_hf({"model_type": "kimi_linear", **layers})


FAMILY = Family(
    model_type="kimi_linear",
    architecture="KimiLinearForCausalLM",
    table=(*tables.TOP, *tables.NORMS, *DELTA, *LATENT, *tables.FFN, *DENSE_AMONG_EXPERTS, *ROUTED),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"kimi-linear-48b-a3b": _48b()},
)
