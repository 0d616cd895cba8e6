"""Granite SWA (IBM): SWASH 2B.

Differs from Granite: windows, a learnt sink per head, and a theta per layer, 0 for a layer without
positions. transformers scales a head's output by sigmoid(logsumexp(scores) - sink), which is a sink
in the softmax in other words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import read_rope
from zoo.hf.table import Row, Same
from zoo.models import granite, parts, tables
from zoo.models.family import Family

DEFAULTS = granite.DEFAULTS | {
    "vocab_size": 100352,
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "sliding_window": 128,
    "layer_types": None,
    "layer_rope_theta": None,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type granite_swa."""
    keys = Keys(hf, DEFAULTS)
    layers = range(keys.integer("num_hidden_layers"))
    default = ["sliding_attention" if i % 4 else "full_attention" for i in layers]
    mixers = tuple(
        granite.scaled_attention(keys, window=window, rope=rope, sinks=True)
        for window, rope in zip(parts.layer_windows(keys, default), _ropes(keys), strict=True)
    )
    return granite.multiplied(keys, mixers, logit_scale=1 / keys.number("logits_scaling"))


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type granite_swa."""
    ropes = [layer.mixer.rope for layer in cfg.layers]
    return {
        **granite.to_hf(cfg),
        **parts.windows(cfg),
        **parts.write_first_rope(cfg),
        "layer_rope_theta": [0 if rope is None else rope.theta for rope in ropes],
    }


def _ropes(keys: Keys) -> list[Rope | None]:
    """The rotation of each layer, by its own theta; None where that is 0."""
    layers, thetas = keys.integer("num_hidden_layers"), keys["layer_rope_theta"]
    rope = read_rope(keys, parts.head_dim(keys))
    if thetas is None:
        return [rope] * layers
    if len(thetas) != layers:
        raise keys.error("layer_rope_theta", f"it must have all {layers} layers")
    return [replace(rope, theta=float(theta)) if theta else None for theta in thetas]


def _swash() -> Config:
    """The released config.json, as copies of it outside of its repository say."""
    norm = Norm(1e-5)
    full, local = (
        Attention(20, 4, 128, Rope(128, 1e4), window, scale=0.0078125, sinks=True)
        for window in (None, 128)
    )
    mixers = (full, local, local, local) * 6
    layers = tuple(Layer(mixer, MLP(8192), norm, residual_scale=0.28) for mixer in mixers)
    return Config(
        100352, 2560, stack_layers(layers), norm, True, 8192, "granite_swa",
        embed_scale=12.0, logit_scale=1 / 10,
    )  # fmt: skip


FAMILY = Family(
    model_type="granite_swa",
    architecture="GraniteSWAForCausalLM",
    table=(*tables.LLAMA, Row(tables.IN_ATTENTION + "sinks", "attn/sinks", Same())),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"granite-swash-2b": _swash()},
)
