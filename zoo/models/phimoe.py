"""Phi-3.5-MoE (arXiv:2404.14219, arXiv:2409.12136) and Phi-mini-MoE (arXiv:2506.18349).

Differs from Mixtral: SparseMixer chooses the two experts, norms are LayerNorms, attention and the
output matrix have biases, a window covers all layers. Of LongRoPE, transformers 5 uses the divisors
for short texts whatever the length, and a factor on cos and sin for either side of the original
length; so is it here. Those for long texts are read but not kept: written configs repeat the short
ones, which says what is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from zoo.config import Attention, Config, Layer, LayerNorm, LongRope, MoE, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import Fields, read_rope
from zoo.hf.table import Row, Same
from zoo.models import parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 6400,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": None,
    "rms_norm_eps": 1e-5,
    "lm_head_bias": False,
    "sliding_window": None,
    "rope_theta": 1e6,
    "num_experts_per_tok": 2,
    "num_local_experts": 16,
    "router_jitter_noise": 0.01,
    "hidden_dropout": 0.0,  # released files have this and the next; the class does not
    "expert_dropout": 0.0,
}
UNUSED = frozenset({"input_jitter_noise"})  # in training only
FACTORS = "short_mscale", "long_mscale"
ROUTER = dict(score="sparsemixer", renormalize=False)  # as fields of `MoE`
IN_MOE = tables.IN_LAYER + "block_sparse_moe."
TABLE = (
    *tables.TOP,
    Row("lm_head.bias", "head/b", Same()),
    *tables.NORMS,
    *tables.NORM_BIASES,
    *tables.ATTENTION,
    *tables.numbered_experts(IN_MOE),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type phimoe."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = LayerNorm(keys.number("rms_norm_eps"))
    bias, window = keys["attention_bias"], keys["sliding_window"]
    mixer = parts.attention(keys, bias, rope=_read_rope(keys), window=window)
    sizes, jitter = ("num_local_experts", "intermediate_size"), keys.number("router_jitter_noise")
    moe = parts.experts(keys, *sizes, other=None, jitter=jitter, **ROUTER)
    return parts.uniform(keys, mixer, moe, norm, head_bias=bool(keys["lm_head_bias"]))


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type phimoe."""
    mixer, moe = cfg.layers[0].mixer, cfg.layers[0].ffn
    return {
        **parts.common(cfg),
        **parts.heads(mixer),
        **_rope_keys(mixer.rope),
        "lm_head_bias": cfg.head_bias,
        "sliding_window": mixer.window,
        **parts.write_experts(moe, "num_local_experts", "intermediate_size"),
        "router_jitter_noise": moe.jitter,
    }


def _read_rope(keys: Keys) -> Rope:
    found: dict[str, float] = {}

    def take(fields: Fields) -> None:
        found.update((key, float(fields.need(key))) for key in FACTORS if key in fields.left)

    rope = read_rope(keys, parts.head_dim(keys), take=take)
    scaling, length = rope.scaling, keys["original_max_position_embeddings"]
    if scaling is None and not found:
        return rope
    if not isinstance(scaling, LongRope) or len(found) != len(FACTORS):
        raise keys.error("rope_scaling", f"only longrope with {' and '.join(FACTORS)} is known")
    if length not in (None, scaling.original_length):
        fix = f"rope_scaling says {scaling.original_length}"
        raise keys.error("original_max_position_embeddings", fix)
    factors = map(found.get, FACTORS)
    scaling = LongRope(scaling.short, scaling.short, scaling.original_length, *factors)
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


def _preset(f: int, rope: Rope, window: int, length: int) -> Config:
    norm = LayerNorm(1e-5)
    mixer = Attention(32, 8, 128, rope, window, qkv_bias=True, o_bias=True)
    moe = MoE(16, 2, f, jitter=0.01, **ROUTER)
    stacks = stack_layers((Layer(mixer, moe, norm),) * 32)
    return Config(32064, 4096, stacks, norm, max_length=length, family="phimoe", head_bias=True)


_SHORT = parts.float32s(
    1.0, *(3 * (1.04,)), *(10 * (1.05,)), 1.06, 1.06, *(4 * (1.0699999,)), 1.14, *(4 * (1.16,)),
    1.18, 1.1999999, 1.3199999, 1.3399999, 1.3499999, 1.3999999, 1.4799999, 1.4999999, 1.5899998,
    1.6499999, 1.7199999, 1.8999999, 1.9099998, 1.9099998, 1.9899999, 1.9999999, 1.9999999,
    *(17 * (2.01,)), 2.1, 2.32, 2.4199998, 2.59, 2.79,
)  # fmt: skip
_FACTOR = 1.243163121016122  # of cos and sin, for short and long texts
_SCALING = LongRope(_SHORT, _SHORT, 4096, _FACTOR, _FACTOR)

FAMILY = Family(
    model_type="phimoe",
    architecture="PhimoeForCausalLM",
    other_architectures=("PhiMoEForCausalLM",),
    table=TABLE,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "phi-3.5-moe": _preset(6400, Rope(128, scaling=_SCALING), window=131072, length=131072),
        "phi-mini-moe": _preset(960, Rope(128), window=2047, length=4096),
    },
)
