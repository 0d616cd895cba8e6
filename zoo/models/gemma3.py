"""Gemma 3 (arXiv:2503.19786): 270M and 1B, and the text part of 4B, 12B and 27B.

Differs from Gemma 2: no soft caps, a norm on each head of q and k, one full layer after five that
see a window, and two rotations: theta 10 000 in windows, and theta 1 000 000, in the larger models
with frequencies divided by 8, in full layers.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, LinearScaling, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import gemma2, tables
from zoo.models.family import Family, Wrapper
from zoo.models.gemma import check_causal, gemma_norm
from zoo.models.parts import every, layer_windows, read_ropes, write_ropes

LOCAL_THETA = "rope_local_base_freq"
DEFAULTS = {
    **gemma2.DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "rope_theta": 1e6,
    LOCAL_THETA: 1e4,
}
UNUSED = gemma2.UNUSED | {"_sliding_window_pattern"}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type gemma3_text."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    check_causal(keys)
    norm, (full, local) = gemma_norm(keys.number("rms_norm_eps")), read_ropes(keys, LOCAL_THETA)
    mixers = (
        gemma2.mixer(keys, window, rope=full if window is None else local, qk_norm=norm)
        for window in layer_windows(keys, every(keys.integer("sliding_window_pattern"), keys))
    )
    return gemma2.sandwiched(keys, mixers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type gemma3_text."""
    return {**gemma2.to_hf(cfg), **write_ropes(cfg, LOCAL_THETA)}


def _preset(layers, d, n, k, f, window, h=256, qpas=256, large=True) -> Config:
    norm, mlp = gemma_norm(), MLP(f, "gelu_tanh")
    ropes = Rope(h), Rope(h, 1e6, scaling=LinearScaling(8.0) if large else None)
    local, full = (
        Layer(Attention(n, k, h, rope, w, qk_norm=norm, scale=qpas**-0.5), mlp, norm, "sandwich")
        for rope, w in zip(ropes, (window, None), strict=True)
    )
    stacks = stack_layers(tuple(full if i % 6 == 5 else local for i in range(layers)))
    length, vocab = (131072, 262208) if large else (32768, 262144)
    return Config(vocab, d, stacks, norm, True, length, "gemma3_text", embed_scale=d**0.5)


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    table=(*tables.TOP, *tables.SANDWICH_NORMS, *tables.ATTENTION, *tables.QK_NORM, *tables.FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "gemma-3-270m": _preset(18, 640, 4, 1, 2048, 512, large=False),
        "gemma-3-1b": _preset(26, 1152, 4, 1, 6912, 512, large=False),
        "gemma-3-4b": _preset(34, 2560, 8, 4, 10240, 1024),
        "gemma-3-12b": _preset(48, 3840, 16, 8, 15360, 1024),
        "gemma-3-27b": _preset(62, 5376, 32, 16, 21504, 1024, 128, 168),
    },
)
WRAPPER = Wrapper(
    model_type="gemma3",
    architecture="Gemma3ForConditionalGeneration",
    families=("gemma3_text",),
    prefixes=(
        {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
        {"model.": "model.language_model.", "lm_head.": "lm_head."},
    ),
    extras=(r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*"),
    keys=frozenset({
        "boi_token_index", "boi_token_id", "eoi_token_index", "eoi_token_id", "image_token_index",
        "image_token_id", "mm_tokens_per_image", "vision_config",
    }),
)  # fmt: skip
