"""Gemma 2 (arXiv:2408.00118): 2B, 9B, 27B.

Differs from Gemma: norms on both sides of attention and of the MLP, every other layer (from the
first) sees a window, scores and logits are bounded by soft caps, and scores are divided by the root
of `query_pre_attn_scalar` instead of that of the head's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.gemma import check_causal, gemma_norm
from zoo.models.parts import attention, decoder, every, layer_windows

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "use_bidirectional_attention": None,
}
UNUSED = frozenset({"hidden_act", "cache_implementation"})  # released files have them


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type gemma2."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    check_causal(keys)
    keys.agree("sliding_window_size", keys["sliding_window"], "other keys")
    norm, softcap = gemma_norm(keys.number("rms_norm_eps")), keys["attn_logit_softcapping"]
    mixers = (
        mixer(keys, window, softcap=softcap) for window in layer_windows(keys, every(2, keys))
    )
    return sandwiched(keys, mixers, norm)


def mixer(keys: Keys, window: int | None, **fields) -> Attention:
    """Attention of Gemma 2 and 3."""
    scale = keys.number("query_pre_attn_scalar") ** -0.5
    return attention(keys, keys["attention_bias"], window=window, scale=scale, **fields)


def sandwiched(keys: Keys, mixers: Iterable[Attention], norm: Norm) -> Config:
    """The decoder of Gemma 2 and 3 with these mixers."""
    ffn = MLP(keys.integer("intermediate_size"), keys.activation("hidden_activation"))
    return decoder(
        keys, tuple(Layer(mixer, ffn, norm, "sandwich") for mixer in mixers), norm,
        embed_scale=keys.integer("hidden_size") ** 0.5,
        logit_softcap=keys["final_logit_softcapping"],
    )  # fmt: skip


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type gemma2."""
    mixer, ffn = cfg.layers[0].mixer, cfg.layers[0].ffn
    return {
        **parts.common(cfg),
        **parts.heads(mixer),
        **parts.windows(cfg),
        "intermediate_size": ffn.hidden,
        "hidden_activation": activation_name(ffn.act),
        "query_pre_attn_scalar": round(mixer.scale**-2),
        "attn_logit_softcapping": mixer.softcap,
        "final_logit_softcapping": cfg.logit_softcap,
    }


def _preset(layers, d, n, k, h, f, scale) -> Config:
    norm, mlp, rope = gemma_norm(), MLP(f, "gelu_tanh"), Rope(h)
    local, full = (
        Layer(
            Attention(n, k, h, rope, window, scale=scale**-0.5, softcap=50.0), mlp, norm, "sandwich"
        )
        for window in (4096, None)
    )
    return Config(
        256000, d, stack_layers((local, full) * (layers // 2)), norm, True, 8192, "gemma2",
        embed_scale=d**0.5, logit_softcap=30.0,
    )  # fmt: skip


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    table=(*tables.TOP, *tables.SANDWICH_NORMS, *tables.ATTENTION, *tables.FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "gemma-2-2b": _preset(26, 2304, 8, 4, 256, 9216, 256),
        "gemma-2-9b": _preset(42, 3584, 16, 8, 256, 14336, 256),
        "gemma-2-27b": _preset(46, 4608, 32, 16, 128, 36864, 144),
    },
)
