"""Ministral 3 (3B, 8B, 14B) and Devstral 2, and the text part of model type mistral3.

Differs from Mistral: YaRN, and queries are multiplied, after the rotation, by a temperature that
grows with the position's multiples of the original length.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import (
    MLP,
    Attention,
    Config,
    Layer,
    Norm,
    Rope,
    Temperature,
    YarnScaling,
    stack_layers,
)
from zoo.hf.keys import Keys
from zoo.hf.ropes import Fields, read_rope
from zoo.models import mistral, parts
from zoo.models.family import Family, Wrapper

BETA = "llama_4_scaling_beta"
DEFAULTS = {
    **mistral.DEFAULTS,
    "vocab_size": 131072,
    "num_hidden_layers": 34,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        BETA: 0.1,
    },
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type ministral3."""
    keys = Keys(hf, DEFAULTS)
    norm = Norm(keys.number("rms_norm_eps"))
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    rope, temperature = positions(keys, parts.head_dim(keys))
    mixer = parts.attention(
        keys, qkv_bias=False, window=keys["sliding_window"], rope=rope, temperature=temperature
    )
    return parts.uniform(keys, mixer, ffn, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type ministral3; its rotation has new keys only."""
    return position_keys(mistral.to_hf(cfg), cfg.layers[0].mixer.temperature)


def position_keys(hf: dict, temperature: Temperature) -> dict:
    """`hf` with its rotation, and the temperature, under new keys."""
    scaling, theta = hf.pop("rope_scaling") or {"rope_type": "default"}, hf.pop("rope_theta")
    ours = {
        "rope_theta": theta,
        "original_max_position_embeddings": int(temperature.length),
        BETA: temperature.beta,
    }
    return hf | {"rope_parameters": scaling | ours}


def positions(
    keys: Keys, dim: int, interleaved: bool = False, fraction: float | None = None
) -> tuple[Rope, Temperature]:
    """The rotation, and the temperature whose keys are in the rotation's dict.

    `fraction` of `dim` is rotated where the dict does not say another; None rotates all.
    """
    found = {}

    def take(fields: Fields) -> None:
        left = fields.left
        if fraction is not None:
            left.setdefault("partial_rotary_factor", fraction)
        left.pop("max_position_embeddings", None)
        found["beta"] = fields.number(BETA)
        found["length"] = left.get("original_max_position_embeddings")
        if left.get("rope_type", left.get("type", "default")) == "default":
            left.pop("original_max_position_embeddings", None)

    rope = read_rope(keys, dim, interleaved, partial=fraction is not None, take=take)
    if None in found.values():
        raise keys.error(
            "rope_parameters", f"it must hold {BETA} and original_max_position_embeddings"
        )
    return rope, Temperature(float(found["beta"]), float(found["length"]))


def _preset(
    layers, d, f, n=32, theta=1e6, tied=False, factor=16.0, original=16384, beta=0.1, fast=32.0,
    all_dim=1.0, length=262144,
) -> Config:  # fmt: skip
    norm, h = Norm(1e-5), 128
    scaling = YarnScaling(factor, original, fast, mscale=1.0, mscale_all_dim=all_dim)
    mixer = Attention(
        n, 8, h, Rope(h, theta, scaling=scaling), temperature=Temperature(beta, float(original))
    )
    stacks = stack_layers((Layer(mixer, MLP(f), norm),) * layers)
    return Config(131072, d, stacks, norm, tied, length, "ministral3")


FAMILY = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    table=mistral.FAMILY.table,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "ministral-3-3b": _preset(26, 3072, 9216, tied=True),
        "ministral-3-8b": _preset(34, 4096, 14336),
        "ministral-3-14b": _preset(40, 5120, 16384, theta=1e9),
        "devstral-small-2-24b": _preset(
            40, 5120, 32768, theta=1e8, factor=48.0, original=8192, length=393216
        ),
        "devstral-2-123b": _preset(
            88, 12288, 28672, 96, factor=64.0, original=4096, beta=0.0, fast=4.0, all_dim=None
        ),
    },
)
WRAPPER = Wrapper(
    model_type="mistral3",
    architecture="Mistral3ForConditionalGeneration",
    families=("mistral", "ministral3", "mistral4"),
    prefixes=(
        {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
        {"model.": "model.language_model.", "lm_head.": "lm_head."},
    ),
    extras=(r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*"),
    keys=frozenset({
        "image_token_index", "image_token_id", "multimodal_projector_bias", "projector_hidden_act",
        "spatial_merge_size", "vision_config", "vision_feature_layer",
    }),
)  # fmt: skip
