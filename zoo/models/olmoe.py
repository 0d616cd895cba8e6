"""OLMoE-1B-7B (arXiv:2409.02060).

Differs from Llama: RMSNorm over all heads of q and over all heads of k together, before the
rotation, then (unused in releases) a bound on the magnitude of q, k and v; and every feed-forward
network is a mixture of experts, routed as Qwen2-MoE's without a shared one. `intermediate_size` is
an expert's.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.parts import attention, common, heads

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "clip_qkv": None,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": False,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type olmoe."""
    keys = Keys(hf, DEFAULTS)
    norm, bias, clip = Norm(keys.number("rms_norm_eps")), keys["attention_bias"], keys["clip_qkv"]
    mixer = attention(keys, bias, qk_norm=norm, norm_heads=True, clip=clip)
    moe = parts.experts(keys, hidden="intermediate_size", renormalize=bool(keys["norm_topk_prob"]))
    return parts.uniform(keys, mixer, moe, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type olmoe."""
    mixer, moe = cfg.layers[0].mixer, cfg.layers[0].ffn
    return {
        **common(cfg),
        **heads(mixer),
        "clip_qkv": mixer.clip,
        **parts.write_experts(moe, hidden="intermediate_size"),
        "norm_topk_prob": moe.renormalize,
    }


_NORM = Norm(1e-5)
_LAYER = Layer(
    Attention(16, 16, 128, Rope(128), qk_norm=_NORM, norm_heads=True),
    MoE(64, 8, 1024, renormalize=False),
    _NORM,
)

FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    table=(*tables.TOP, *tables.NORMS, *tables.ATTENTION, *tables.QK_NORM, *tables.EXPERTS),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "olmoe-1b-7b": Config(
            50304, 2048, stack_layers((_LAYER,) * 16), _NORM, max_length=4096, family="olmoe"
        ),
    },
)
