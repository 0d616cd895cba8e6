"""Phi-3.5-MoE (arXiv:2404.14219, arXiv:2409.12136).

Differs from Mixtral: SparseMixer chooses the two experts, norms are LayerNorms, attention and the
output matrix have biases, a window covers all layers. Of LongRoPE, transformers 5 uses the divisors
for short texts whatever the length, and a factor on cos and sin for either side of the original
length; so is it here. The released divisors are not at hand, so there is no preset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from zoo.config import Config, LayerNorm, LongRope, Rope
from zoo.hf.keys import Keys, read_rope
from zoo.hf.table import Row, Same
from zoo.models import parts
from zoo.models.family import Family
from zoo.models.parts import attention, common, head_dim, heads

DEFAULTS = {
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 6400,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": None,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "lm_head_bias": False,
    "sliding_window": None,
    "rope_theta": 1e6,
    "num_experts_per_tok": 2,
    "num_local_experts": 16,
    "router_jitter_noise": 0.01,
    "hidden_dropout": 0.0,  # released files have it; the class does not
}
UNUSED = frozenset({"input_jitter_noise"})  # in training only
FACTORS = "short_mscale", "long_mscale"
IN_MOE = parts.IN_LAYER + "block_sparse_moe."
TABLE = (
    *parts.TOP,
    Row("model.norm.bias", "final_norm/b", Same()),
    Row("lm_head.bias", "head/b", Same()),
    *parts.NORMS,
    Row(parts.IN_LAYER + "input_layernorm.bias", "attn_norm/b", Same()),
    Row(parts.IN_LAYER + "post_attention_layernorm.bias", "ffn_norm/b", Same()),
    *parts.ATTENTION,
    *parts.numbered_experts(IN_MOE),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type phimoe."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = LayerNorm(float(keys["rms_norm_eps"]))
    mixer = attention(
        keys, o_bias=keys["attention_bias"], rope=_read_rope(keys), window=keys["sliding_window"]
    )
    moe = parts.experts(
        keys,
        "num_local_experts",
        "intermediate_size",
        None,
        score="sparsemixer",
        renormalize=False,
        jitter=float(keys["router_jitter_noise"]),
    )
    return parts.uniform(keys, mixer, moe, norm, head_bias=bool(keys["lm_head_bias"]))


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type phimoe."""
    mixer, moe = cfg.layers[0].mixer, cfg.layers[0].ffn
    return {
        **common(cfg),
        **heads(mixer),
        **_rope_keys(mixer.rope),
        "lm_head_bias": cfg.head_bias,
        "sliding_window": mixer.window,
        **parts.write_experts(moe, "num_local_experts", "intermediate_size"),
        "router_jitter_noise": moe.jitter,
    }


def _read_rope(keys: Keys) -> Rope:
    found: dict[str, float] = {}

    def take(left: dict) -> None:
        found.update((key, float(left.pop(key))) for key in FACTORS if key in left)

    rope, outside = read_rope(keys, head_dim(keys), take=take), "original_max_position_embeddings"
    scaling, length = rope.scaling, keys[outside]
    if scaling is None and not found:
        return rope
    if not isinstance(scaling, LongRope) or len(found) != len(FACTORS):
        raise keys.error("rope_scaling", f"only longrope with {' and '.join(FACTORS)} is known")
    if length not in (None, scaling.original_length):
        raise keys.error(outside, f"rope_scaling says {scaling.original_length}")
    short, long = (found[key] for key in FACTORS)
    scaling = LongRope(scaling.short, scaling.short, scaling.original_length, short, long)
    return dataclasses.replace(rope, scaling=scaling)


def _rope_keys(rope: Rope) -> dict:
    """transformers 4 wants these six keys and no other."""
    scaling = rope.scaling
    if not isinstance(scaling, LongRope):
        return {}
    return {
        "rope_scaling": {
            "type": "longrope",
            "short_factor": list(scaling.short),
            "long_factor": list(scaling.long),
            "short_mscale": scaling.short_factor,
            "long_mscale": scaling.long_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    }


FAMILY = Family(
    model_type="phimoe",
    architecture="PhimoeForCausalLM",
    other_architectures=("PhiMoEForCausalLM",),
    table=TABLE,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={},
)
