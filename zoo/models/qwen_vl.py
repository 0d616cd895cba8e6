"""The text parts of Qwen2-VL (arXiv:2409.12191), Qwen2.5-VL (arXiv:2502.13923) and Qwen3-VL
(arXiv:2511.21631): Qwen2's, Qwen3's and Qwen3-MoE's, and the wholes that Qwen puts text into.

Their rotation has three positions per token, which are equal in text; features of vision that enter
the first layers of Qwen3-VL are absent there. Released configs of Qwen2-VL and 2.5-VL have the text
part's keys at the top, beside those of vision; transformers 5 writes them apart. Files of mixtures
fuse all experts of a layer: released ones as [in, out], those that transformers 5 writes as [out,
in]. Of Qwen3-VL, the whole says whether the head is tied. Tensors of vision are carried along
unused. A text part of its own is written as qwen2, qwen3 or qwen3_moe. No presets: the text parts
have the sizes of Qwen2's, Qwen2.5's and Qwen3's.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import Config
from zoo.hf.table import Row, Same, Split
from zoo.models import qwen2, qwen3, qwen3_moe
from zoo.models.family import Family, Wrapper
from zoo.models.tables import IN_MLP

# Those that differ from Qwen2's, Qwen3's and Qwen3-MoE's.
DEFAULTS_2 = {
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
DEFAULTS_3 = {"max_position_embeddings": 128_000, "rope_theta": 500_000.0}
MOE_DEFAULTS_3 = {
    **DEFAULTS_3,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
}

RELEASED_EXPERTS = (
    Row(IN_MLP + "experts.gate_up_proj", ("moe/gate/w", "moe/up/w"), Split(-1, Same())),
    Row(IN_MLP + "experts.down_proj", "moe/down/w", Same()),
)


def from_hf_2(hf: Mapping) -> Config:
    """Reads a config of model_type qwen2_5_vl_text or qwen2_vl_text, as one of qwen2."""
    return qwen2.from_hf({**DEFAULTS_2, **_plain(hf), "model_type": "qwen2"})


def from_hf_3(hf: Mapping) -> Config:
    """Reads a config of model_type qwen3_vl_text, as one of qwen3."""
    return qwen3.from_hf({**DEFAULTS_3, **_plain(hf), "model_type": "qwen3"})


def moe_from_hf_3(hf: Mapping) -> Config:
    """Reads a config of model_type qwen3_vl_moe_text, as one of qwen3_moe."""
    count = {} if "num_local_experts" in hf else {"num_experts": 60}
    return qwen3_moe.from_hf({**MOE_DEFAULTS_3, **count, **_plain(hf), "model_type": "qwen3_moe"})


def _plain(hf: Mapping) -> dict:
    """A config whose rotation does not say which pairs turn by which of the three positions."""

    def plain(rope: Mapping) -> dict:
        left = {k: v for k, v in rope.items() if k not in ("mrope_section", "mrope_interleaved")}
        kinds = {key: "default" for key in ("type", "rope_type") if left.get(key) == "mrope"}
        return left | kinds

    ropes = (k for k in ("rope_scaling", "rope_parameters") if isinstance(hf.get(k), Mapping))
    return {**hf, **{key: plain(hf[key]) for key in ropes}}


FAMILY_2 = Family(
    model_type="qwen2_5_vl_text",
    architecture="Qwen2_5_VLTextModel",
    table=qwen2.FAMILY.table,
    from_hf=from_hf_2,
    to_hf=qwen2.to_hf,
    presets={},
    aliases=("qwen2_vl_text",),
    other_architectures=("Qwen2VLTextModel",),
)
FAMILY_3 = Family(
    model_type="qwen3_vl_text",
    architecture="Qwen3VLTextModel",
    table=qwen3.FAMILY.table,
    from_hf=from_hf_3,
    to_hf=qwen3.to_hf,
    presets={},
)
MOE_FAMILY_3 = Family(
    model_type="qwen3_vl_moe_text",
    architecture="Qwen3VLMoeTextModel",
    table=qwen3_moe.FAMILY.table,
    from_hf=moe_from_hf_3,
    to_hf=qwen3_moe.to_hf,
    presets={},
)
NESTED = {"model.": "model.language_model.", "lm_head.": "lm_head."}
IMAGE_KEYS = frozenset({
    "image_token_id", "video_token_id", "vision_config", "vision_end_token_id",
    "vision_start_token_id",
})  # fmt: skip


def whole(model_type: str, name: str, **fields) -> Wrapper:
    """The whole of text and vision that transformers calls `name`; `fields` as in `Wrapper`."""
    usual = dict(prefixes=(NESTED,), extras=(r"model\.visual\..*",), keys=IMAGE_KEYS)
    return Wrapper(
        model_type=model_type,
        architecture=f"{name}ForConditionalGeneration",
        families=(f"{model_type}_text",),
        **{**usual, **fields},
    )


_FLAT = dict(
    prefixes=({"model.": "model.", "lm_head.": "lm_head."}, NESTED),
    extras=(r"(model\.)?visual\..*",),
    keys=IMAGE_KEYS | {"vision_token_id"},
    flat=True,
)
_TIED = ("tie_word_embeddings",)
WRAPPERS = (
    whole("qwen2_5_vl", "Qwen2_5_VL", **_FLAT),
    whole("qwen2_vl", "Qwen2VL", **_FLAT),
    whole("qwen3_vl", "Qwen3VL", overruled=_TIED),
    whole("qwen3_vl_moe", "Qwen3VLMoe", overruled=_TIED, rows=RELEASED_EXPERTS),
)
