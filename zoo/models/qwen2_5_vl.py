"""The text part of Qwen2.5-VL (arXiv:2502.13923): Qwen2.5 with other defaults.

Its rotation has three positions per token, which are equal in text: then it is Qwen2's. Released
configs have the text part's keys at the top, beside those of vision; transformers 5 writes them
apart. Tensors of vision are carried along unused. A text part of its own is written as qwen2. No
presets: the text parts have the sizes of qwen2.5-3b, 7b, 32b and 72b.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import Config
from zoo.models import qwen2
from zoo.models.family import Family, Wrapper

DEFAULTS = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "max_window_layers": 80,
}
"""Those that differ from Qwen2's."""


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen2_5_vl_text, as one of model_type qwen2."""
    ropes = {key: _of_text(hf[key]) for key in ("rope_scaling", "rope_parameters") if hf.get(key)}
    return qwen2.from_hf({**DEFAULTS, **hf, **ropes, "model_type": "qwen2"})


def _of_text(rope: Mapping) -> dict:
    """A rotation without which pairs turn by which of the three positions."""
    left = {key: value for key, value in rope.items() if key != "mrope_section"}
    kinds = {key: "default" for key in ("type", "rope_type") if left.get(key) == "mrope"}
    return left | kinds


FAMILY = Family(
    model_type="qwen2_5_vl_text",
    architecture="Qwen2_5_VLTextModel",
    table=qwen2.FAMILY.table,
    from_hf=from_hf,
    to_hf=qwen2.to_hf,
    presets={},
)
WRAPPER = Wrapper(
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    families=("qwen2_5_vl_text",),
    prefixes=(
        {"model.": "model.", "lm_head.": "lm_head."},
        {"model.": "model.language_model.", "lm_head.": "lm_head."},
    ),
    extras=(r"(model\.)?visual\..*",),
    keys=frozenset({
        "image_token_id", "video_token_id", "vision_config", "vision_end_token_id",
        "vision_start_token_id", "vision_token_id",
    }),
    flat=True,
)  # fmt: skip
