"""gpt-oss 20b and 120b (arXiv:2508.10925).

Differs from Llama: every projection has a bias; a learnt sink per head takes its share of the
softmax; a window covers every other layer, the first included; YaRN without rounding its ramp;
norms multiply in float32. Every layer is a mixture of experts, weighed by a softmax over the chosen
logits, with biases in router and experts and a clamped SwiGLU. Files hold experts as [in, out],
with gate and up in alternating columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import (
    Attention,
    ClampedSwiGLU,
    Config,
    Layer,
    MoE,
    Norm,
    Rope,
    YarnScaling,
    stack_layers,
)
from zoo.hf.keys import Keys
from zoo.hf.table import Interleave, Linear, Row, Same
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.parts import attention, common, decoder, heads
from zoo.models.tables import IN_ATTENTION, IN_MLP

DEFAULTS = {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "attention_dropout": 0.0,
    "sliding_window": 128,
    "layer_types": None,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "rope_theta": 150_000.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
# In released files, beside the keys that say the same.
UNUSED = frozenset({"experts_per_token", "initial_context_length"})

EXPERTS = (
    Row(IN_MLP + "router.weight", "moe/router/w", Linear()),
    Row(IN_MLP + "router.bias", "moe/router/b", Same()),
    Row(IN_MLP + "experts.gate_up_proj", ("moe/gate/w", "moe/up/w"), Interleave(Same())),
    Row(IN_MLP + "experts.gate_up_proj_bias", ("moe/gate/b", "moe/up/b"), Interleave(Same())),
    Row(IN_MLP + "experts.down_proj", "moe/down/w", Same()),
    Row(IN_MLP + "experts.down_proj_bias", "moe/down/b", Same()),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type gpt_oss."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = Norm(keys.number("rms_norm_eps"), wide=True)
    moe = MoE(
        experts=keys.integer(keys.alias("num_local_experts", "num_experts")),
        top_k=keys.integer("num_experts_per_tok"),
        hidden=keys.integer("intermediate_size"),
        act=ClampedSwiGLU(keys.number("swiglu_alpha"), keys.number("swiglu_limit")),
        router_bias=True,
        bias=True,
    )
    mixer = attention(keys, o_bias=keys["attention_bias"], sinks=True)
    layers = tuple(
        Layer(replace(mixer, window=window), moe, norm)
        for window in parts.layer_windows(keys, parts.every(2, keys))
    )
    return decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type gpt_oss."""
    layer = cfg.layers[0]
    moe = layer.ffn
    found = {
        **common(cfg),
        **heads(layer.mixer),
        **parts.windows(cfg),
        "intermediate_size": moe.hidden,
        "hidden_act": "silu",
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "swiglu_alpha": moe.act.alpha,
        "swiglu_limit": moe.act.limit,
    }
    if found["rope_scaling"] is None:  # which the class would take for its own YaRN
        found["rope_scaling"] = {"rope_type": "default"}
    return found


def _preset(layers: int, experts: int) -> Config:
    norm = Norm(1e-5, wide=True)
    rope = Rope(64, 150_000.0, scaling=YarnScaling(32.0, 4096, truncate=False))
    moe = MoE(experts, 4, 2880, ClampedSwiGLU(), router_bias=True, bias=True)
    pattern = tuple(
        Layer(
            Attention(64, 8, 64, rope, window=window, qkv_bias=True, o_bias=True, sinks=True),
            moe,
            norm,
        )
        for window in (128, None)
    )
    stacks = stack_layers(pattern * (layers // 2))
    return Config(201088, 2880, stacks, norm, max_length=131072, family="gpt_oss")


FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    table=(
        *tables.TOP,
        *tables.NORMS,
        *tables.ATTENTION,
        Row(IN_ATTENTION + "sinks", "attn/sinks", Same()),
        *EXPERTS,
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"gpt-oss-20b": _preset(24, 32), "gpt-oss-120b": _preset(36, 128)},
)
