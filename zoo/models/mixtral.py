"""Mixtral 8x7B, 8x22B (arXiv:2401.04088).

Differs from Llama: every feed-forward network is a mixture of experts, routed by a softmax over all
experts in the model's dtype, the chosen weights renormalised and kept in float32. A sliding window,
if there is one, covers all layers. `intermediate_size` is an expert's.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.table import Linear, Row
from zoo.models import mistral, parts, tables
from zoo.models.family import Family
from zoo.models.parts import attention, common, heads

DEFAULTS = {
    **mistral.DEFAULTS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "attention_bias": False,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}
UNUSED = frozenset({"router_jitter_noise"})  # of training

IN_MOE = tables.IN_LAYER + "block_sparse_moe."
# `mlp` is what transformers 5 calls the mixture in memory.
EXPERTS = (
    *tables.numbered_experts(IN_MOE),
    Row(tables.IN_MLP + "gate.weight", "moe/router/w", Linear()),
    *tables.FUSED_EXPERTS,
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type mixtral."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, window = Norm(keys.number("rms_norm_eps")), keys["sliding_window"]
    mixer = attention(keys, qkv_bias=False, window=window)
    moe = parts.experts(
        keys, "num_local_experts", "intermediate_size", "num_experts", fp32_weights=True
    )
    return parts.uniform(keys, mixer, moe, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type mixtral."""
    mixer, moe = cfg.layers[0].mixer, cfg.layers[0].ffn
    return {
        **common(cfg),
        **heads(mixer),
        "sliding_window": mixer.window,
        **parts.write_experts(moe, "num_local_experts", "intermediate_size"),
    }


def _preset(layers, d, n, f, vocab, length) -> Config:
    norm = Norm(1e-5)
    layer = Layer(Attention(n, 8, 128, Rope(128, 1e6)), MoE(8, 2, f, fp32_weights=True), norm)
    stacks = stack_layers((layer,) * layers)
    return Config(vocab, d, stacks, norm, max_length=length, family="mixtral")


FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    table=(*tables.TOP, *tables.NORMS, *tables.ATTENTION, *EXPERTS),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "mixtral-8x7b": _preset(32, 4096, 32, 14336, 32000, 32768),
        # as instructed; the base model has 32000 tokens
        "mixtral-8x22b": _preset(56, 6144, 48, 16384, 32768, 65536),
    },
)
