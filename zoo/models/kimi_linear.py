"""Kimi Linear (arXiv:2510.26692): Kimi-Linear-48B-A3B.

Differs from DeepSeek-V3: three layers of four are Kimi Delta Attention, whose state decays by key
channel; the fourth is multi-head latent attention without positions. Files number these layers from
1, and keep names of their own for experts; transformers writes the dense layers among them.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import Config, GatedDelta, Norm
from zoo.hf.keys import Keys
from zoo.hf.table import Depthwise, Flat, Linear, Row, Same, Shaped
from zoo.models import latent, parts, tables
from zoo.models.family import Family
from zoo.models.hybrid import FULL, LINEAR
from zoo.models.tables import IN_ATTENTION, IN_LAYER

NAMES = {  # what others call keys -> what these files do
    "max_position_embeddings": "model_max_length",
    "n_group": "num_expert_group",
    "n_routed_experts": "num_experts",
    "n_shared_experts": "num_shared_experts",
    "norm_topk_prob": "moe_renormalize",
    "num_experts_per_tok": "num_experts_per_token",
}
DEFAULTS = {
    **latent.DEFAULTS,
    **{NAMES.get(key, key): value for key, value in latent.MOE_DEFAULTS.items()},
    "vocab_size": 163840,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "routed_scaling_factor": 2.446,
    "q_lora_rank": None,
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
    "moe_router_activation_func": "sigmoid",
    "use_grouped_topk": True,
}
SIZES = {  # in linear_attn_config -> beside it
    "head_dim": "linear_head_dim",
    "num_heads": "linear_num_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
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
FFN = (
    *tables.FFN,
    *tables.gated_mlp(IN_MOE, "mlp"),  # where transformers saves dense layers
    *tables.numbered_experts(IN_MOE),
    Row(IN_MOE + "gate.e_score_correction_bias", "moe/bias/b", Same()),
    *tables.shared_expert("shared_experts", IN_MOE),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type kimi_linear."""
    keys = Keys(hf, DEFAULTS, UNUSED, NAMES)
    eps, sizes = keys.number("rms_norm_eps"), _linear_config(keys)
    dim, n, conv = map(sizes.integer, SIZES)
    norm, act = Norm(eps, wide=True), keys.activation()
    delta = GatedDelta(n, n, dim, dim, conv, act, norm, "sigmoid", decay_rank=dim, gate_rank=dim)
    known = {LINEAR: delta, FULL: latent.attention(keys, None, bias=False)}
    mixers = [known[kind] for kind in _mixer_kinds(keys, sizes)]
    moe = latent.mixture(keys, "n_routed_experts", **latent.NOAUX, **latent.groups(keys))
    sparse = parts.sparse_layers(keys, keys.integer("first_k_dense_replace", 0))
    return parts.decoder(keys, latent.layers(keys, mixers, moe, sparse, Norm(eps)), Norm(eps))


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type kimi_linear."""
    mixers = {n: layer.mixer for n, layer in enumerate(cfg.layers, 1)}
    linear = {n: mixer for n, mixer in mixers.items() if isinstance(mixer, GatedDelta)}
    full = [n for n in mixers if n not in linear]
    delta = next(iter(linear.values()))
    sizes = zip(SIZES, (delta.k_dim, delta.k_heads, delta.conv), strict=True)
    keys = {
        **latent.keys_of(cfg),
        **latent.dense_first(cfg),
        **parts.ffn_types(cfg),
        "linear_attn_config": {"kda_layers": [*linear], "full_attn_layers": full, **dict(sizes)},
        "mla_use_nope": True,
        "moe_router_activation_func": "sigmoid",
    }
    return {NAMES.get(key, key): value for key, value in keys.items()}


def _linear_config(keys: Keys) -> Keys:
    """linear_attn_config, which wins over keys beside it."""
    beside = {inner: keys.integer(name) for inner, name in SIZES.items()}
    inner = {**(keys["linear_attn_config"] or {}), "model_type": f"{keys.family} linear_attn"}
    return Keys(inner, {**beside, "kda_layers": None, "full_attn_layers": None})


def _mixer_kinds(keys: Keys, sizes: Keys) -> list[str]:
    """By layer_types, else by linear_attn_config's numbers, else every fourth after the first."""
    count = keys.integer("num_hidden_layers")
    layers = range(1, count + 1)
    linear, full = sizes["kda_layers"], sizes["full_attn_layers"]
    sizes.close()
    default = [FULL if n > 1 and n % 4 == 1 else LINEAR for n in layers]
    if keys["layer_types"] is None and linear is not None and full is not None:
        named = dict.fromkeys(linear, LINEAR) | dict.fromkeys(full, FULL)
        if named.keys() != set(layers):
            raise keys.error("linear_attn_config", f"it must name each of layers 1 to {count}")
        default = [named[n] for n in layers]
    return parts.kinds(keys, "layer_types", (LINEAR, FULL), default)


# All else is as the config class has it by default.
_48B = [FULL if n % 4 == 0 or n == 27 else LINEAR for n in range(1, 28)]

FAMILY = Family(
    model_type="kimi_linear",
    architecture="KimiLinearForCausalLM",
    table=(*tables.TOP, *tables.NORMS, *DELTA, *latent.LATENT, *FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"kimi-linear-48b-a3b": from_hf({"model_type": "kimi_linear", "layer_types": _48B})},
)
