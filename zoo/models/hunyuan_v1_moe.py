"""Hunyuan-A13B (Tencent, 2025).

Differs from dense Hunyuan: every feed-forward network is a mixture of experts beside an MLP of the
same size that every token goes through. The router is in float32, also in bfloat16 files: a softmax
over all experts, the chosen weights renormalised. Files may say `moe_topk`, and other counts, once
for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.hf.table import Linear, Row
from zoo.models import hunyuan_v1_dense, parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **hunyuan_v1_dense.DEFAULTS,
    "num_experts": 1,
    "moe_topk": 1,
    # Released files have these too; the class takes them for granted.
    "moe_layer_num_skipped": 0,
    "norm_topk_prob": True,
    "num_shared_expert": 1,
    "num_shared_experts": 1,
    "use_mixed_mlp_moe": True,
    # Of relatives with latent attention, or other rotations.
    "kv_lora_rank": None,
    "q_lora_rank": None,
    "qk_nope_head_dim": None,
    "qk_rope_head_dim": None,
    "use_mla": False,
    "v_head_dim": None,
    "xdrope_section": None,
}
UNUSED = hunyuan_v1_dense.UNUSED | {
    "capacity_factor", "group_limited_greedy", "moe_drop_tokens",
    "moe_random_routing_dropped_token",
    "n_group", "routed_scaling_factor", "topk_group",
    # Of vision, which no released file has.
    "anyres_pooling_size", "anyres_vit_max_image_size", "anyres_vit_two_views",
    "vit_add_patchemb_bias", "vit_input_resolution", "vit_mapping_type", "vit_norm_type",
    "vit_patch", "vit_path", "vit_remove_prenorm", "vit_token", "vit_type", "vit_used_rms_norm",
}  # fmt: skip
ROUTED = (
    Row(tables.IN_MLP + "gate.wg.weight", "moe/router/w", Linear()),
    *(row for row in tables.EXPERTS if row.paths != ("moe/router/w",)),
    *tables.shared_expert("shared_mlp"),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type hunyuan_v1_moe (or hunyuan, which has the same keys)."""
    keys = Keys({**hf, "model_type": "hunyuan_v1_moe"}, DEFAULTS, UNUSED)
    norm, act, hidden = Norm(keys.number("rms_norm_eps")), keys.activation(), _hidden(keys)
    mixer = parts.attention(
        keys, keys["attention_bias"], rope=hunyuan_v1_dense.stretched_rope(keys),
        qk_norm=norm, norm_after_rope=True,
    )  # fmt: skip
    beside = keys.alias("num_shared_experts", "num_shared_expert")
    for name in (beside, "moe_layer_num_skipped"):
        if any(count != DEFAULTS[name] for count in _each(keys, name)):
            raise keys.error(name, f"only {DEFAULTS[name]} is implemented, as in transformers")
    experts = _each(keys, keys.alias("num_experts", "num_local_experts"))
    chosen = _each(keys, keys.alias("moe_topk", "num_experts_per_tok"))
    layers = tuple(
        Layer(
            mixer,
            MoE(e, k, hidden, act, fp32_router=True, fp32_weights=True, shared=MLP(hidden, act)),
            norm,
        )
        for e, k in zip(experts, chosen, strict=True)
    )
    return parts.decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type hunyuan_v1_moe, with the stretched theta as rope_theta."""
    moe, chosen = cfg.layers[0].ffn, [layer.ffn.top_k for layer in cfg.layers]
    return {
        **parts.common(cfg),
        **parts.heads(cfg.layers[0].mixer),
        "intermediate_size": moe.hidden,
        "hidden_act": activation_name(moe.act),
        "num_experts": moe.experts,
        "moe_topk": chosen if len(set(chosen)) > 1 else chosen[0],
    }


def _hidden(keys: Keys) -> int:
    """The size of every MLP; `moe_intermediate_size` may repeat it."""
    hidden = keys.integer("intermediate_size")
    again = keys.get("moe_intermediate_size")
    for size in again if isinstance(again, list) else [again]:
        if size not in (None, hidden):
            raise keys.error("moe_intermediate_size", f"it must be intermediate_size={hidden}")
    return hidden


def _each(keys: Keys, name: str) -> list[int]:
    """A count that is given once, or once for each layer."""
    layers, value = keys.integer("num_hidden_layers"), keys[name]
    if not isinstance(value, list):
        return [keys.integer(name, 0)] * layers
    if len(value) != layers or not all(isinstance(count, int) for count in value):
        raise keys.error(name, f"it must be a whole number, or one for each of {layers} layers")
    return value


def _preset() -> Config:
    norm, rope = Norm(1e-5), Rope(128, hunyuan_v1_dense.stretched_theta(1000.0, 128))
    mixer = Attention(32, 8, 128, rope, qk_norm=norm, norm_after_rope=True)
    moe = MoE(64, 8, 3072, fp32_router=True, fp32_weights=True, shared=MLP(3072))
    stacks = stack_layers((Layer(mixer, moe, norm),) * 32)
    return Config(128167, 4096, stacks, norm, True, 32768, "hunyuan_v1_moe")


FAMILY = Family(
    model_type="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    table=(
        *tables.TOP,
        *tables.NORMS,
        *tables.ATTENTION,
        *hunyuan_v1_dense.QK_NORM,
        *ROUTED,
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"hunyuan-a13b": _preset()},
    aliases=("hunyuan",),  # as files say that come with the authors' code
)
