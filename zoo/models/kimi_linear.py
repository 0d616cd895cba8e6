"""Kimi Linear (arXiv:2510.26692): Kimi-Linear-48B-A3B.

Differs from DeepSeek-V3: three layers of four are Kimi Delta Attention, whose state decays by key
channel; the fourth is multi-head latent attention without positions. Files number these layers from
1, and keep names of their own for experts; transformers writes the dense layers among them.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLA, MLP, Config, GatedDelta, Layer, MoE, Norm, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.hf.table import Depthwise, Flat, Linear, Row, Same, Shaped
from zoo.models import latent, parts
from zoo.models.family import Family
from zoo.models.latent import LATENT
from zoo.models.parts import IN_ATTENTION, IN_LAYER

LINEAR, FULL = "linear_attention", "full_attention"
DEFAULTS = {
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
    "hidden_act": "silu",
    "model_max_length": 1048576,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
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
    *parts.numbered_experts(IN_MOE),
    Row(IN_MOE + "gate.e_score_correction_bias", "moe/bias/b", Same()),
    *parts.shared_expert("shared_experts", IN_MOE),
)
DENSE_AMONG_EXPERTS = parts.gated_mlp(IN_MOE, "mlp")  # as transformers saves it


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type kimi_linear."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, act = Norm(float(keys["rms_norm_eps"])), keys.activation()
    sizes = _linear_config(keys)
    mixers = {LINEAR: _delta(keys, sizes), FULL: latent.attention(keys, None, bias=False)}
    dense, moe = MLP(keys.integer("intermediate_size"), act), _moe(keys)
    sparse = parts.sparse_layers(keys, keys.integer("first_k_dense_replace"))
    layers = tuple(
        Layer(mixers[kind], moe if routed else dense, norm)
        for kind, routed in zip(_mixer_kinds(keys, sizes), sparse, strict=True)
    )
    return parts.decoder(keys, layers, norm, max_length=keys.integer("model_max_length"))


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type kimi_linear."""
    delta = next(la.mixer for la in cfg.layers if isinstance(la.mixer, GatedDelta))
    a = next(la.mixer for la in cfg.layers if isinstance(la.mixer, MLA))
    moe, dense = parts.ffns(cfg)
    linear = [i + 1 for i, la in enumerate(cfg.layers) if isinstance(la.mixer, GatedDelta)]
    keys = parts.common(cfg)
    return {
        "model_max_length": keys.pop("max_position_embeddings"),
        **keys,
        "linear_attn_config": {
            "kda_layers": linear,
            "full_attn_layers": [i + 1 for i in range(len(cfg.layers)) if i + 1 not in linear],
            "head_dim": delta.k_dim,
            "num_heads": delta.k_heads,
            "short_conv_kernel_size": delta.conv,
        },
        "mla_use_nope": True,
        **latent.attention_keys(a),
        "hidden_act": activation_name(moe.act),
        "intermediate_size": dense.hidden,
        "first_k_dense_replace": sum(isinstance(la.ffn, MLP) for la in cfg.layers),
        **parts.ffn_types(cfg),
        "moe_intermediate_size": moe.hidden,
        "num_shared_experts": moe.shared.hidden // moe.hidden,
        "num_experts": moe.experts,
        "num_experts_per_token": moe.top_k,
        "num_expert_group": moe.groups,
        "topk_group": moe.top_groups,
        "moe_renormalize": moe.renormalize,
        "moe_router_activation_func": "sigmoid",
        "routed_scaling_factor": moe.scale,
    }  # fmt: skip


def _linear_config(keys: Keys) -> dict:
    """linear_attn_config, which wins over keys beside it."""
    sizes = dict(keys["linear_attn_config"] or {})
    beside = {
        "head_dim": "linear_head_dim",
        "num_heads": "linear_num_heads",
        "short_conv_kernel_size": "linear_conv_kernel_dim",
    }
    if unknown := sorted(sizes.keys() - beside.keys() - {"kda_layers", "full_attn_layers"}):
        raise keys.error("linear_attn_config", f"{', '.join(unknown)} is not known; remove it")
    return {name: keys.integer(key) for name, key in beside.items()} | sizes


def _delta(keys: Keys, sizes: dict) -> GatedDelta:
    heads, dim = sizes["num_heads"], sizes["head_dim"]
    return GatedDelta(
        k_heads=heads,
        v_heads=heads,
        k_dim=dim,
        v_dim=dim,
        conv=sizes["short_conv_kernel_size"],
        act=keys.activation(),
        norm=Norm(float(keys["rms_norm_eps"]), wide=True),
        gate_act="sigmoid",
        decay_rank=dim,
        gate_rank=dim,
    )


def _moe(keys: Keys) -> MoE:
    act, hidden = keys.activation(), keys.integer("moe_intermediate_size")
    return MoE(
        experts=keys.integer("num_experts"),
        top_k=keys.integer("num_experts_per_token"),
        hidden=hidden,
        act=act,
        renormalize=bool(keys["moe_renormalize"]),
        scale=float(keys["routed_scaling_factor"]),
        groups=keys.integer("num_expert_group"),
        top_groups=keys.integer("topk_group"),
        **latent.NOAUX,
        shared=MLP(hidden * keys.integer("num_shared_experts"), act),
    )


def _mixer_kinds(keys: Keys, sizes: dict) -> list[str]:
    """By layer_types, else by linear_attn_config's numbers, else every fourth after the first."""
    layers, kinds = keys.integer("num_hidden_layers"), keys["layer_types"]
    if kinds is None and "kda_layers" in sizes and "full_attn_layers" in sizes:
        named = {n: LINEAR for n in sizes["kda_layers"]}
        named |= {n: FULL for n in sizes["full_attn_layers"]}
        if named.keys() != set(range(1, layers + 1)):
            raise keys.error("linear_attn_config", f"it must name each of layers 1 to {layers}")
        return [named[n] for n in range(1, layers + 1)]
    if kinds is None:
        return [FULL if i and i % 4 == 0 else LINEAR for i in range(layers)]
    if len(kinds) != layers or not set(kinds) <= {LINEAR, FULL}:
        raise keys.error("layer_types", f"it must name {LINEAR} or {FULL} for all {layers} layers")
    return list(kinds)


def _preset() -> Config:
    norm, mlp = Norm(1e-5), MLP(9216)
    gates = dict(gate_act="sigmoid", decay_rank=128, gate_rank=128)
    delta = GatedDelta(32, 32, 128, 128, norm=Norm(1e-5, wide=True), **gates)
    full = MLA(32, None, 512, 128, 64, 128, None)
    moe = MoE(256, 8, 1024, scale=2.446, shared=MLP(1024), **latent.NOAUX)
    mixers = [full if n % 4 == 0 or n == 27 else delta for n in range(1, 28)]
    layers = tuple(Layer(m, moe if i else mlp, norm) for i, m in enumerate(mixers))
    stacks = stack_layers(layers)
    return Config(163840, 2304, stacks, norm, max_length=1048576, family="kimi_linear")


FAMILY = Family(
    model_type="kimi_linear",
    architecture="KimiLinearForCausalLM",
    table=(*parts.TOP, *parts.NORMS, *DELTA, *LATENT, *parts.FFN, *DENSE_AMONG_EXPERTS, *ROUTED),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"kimi-linear-48b-a3b": _preset()},
)
