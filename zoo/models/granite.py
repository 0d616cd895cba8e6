"""Granite (IBM) 3.x and 4.1, dense, and Granite SWA.

Differs from Llama by four multipliers (muP, arXiv:2203.03466): of the embeddings, of what each part
adds to the residual stream, of the scores instead of head_dim**-0.5, and a divisor of the logits.
Granite SWA adds windows, a learnt sink per head, and a theta per layer, 0 for a layer without
positions. transformers scales a head's output by sigmoid(logsumexp(scores) - sink), which is a sink
in the softmax in other words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import MLP, Attention, Config, Layer, Norm, Placement, Rope, stack_layers
from zoo.hf.keys import Keys, read_rope
from zoo.hf.table import Row, Same
from zoo.models import llama, parts
from zoo.models.family import Family

DEFAULTS = {
    **llama.DEFAULTS,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}
SWA_DEFAULTS = DEFAULTS | {
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
    """Reads a config of model_type granite."""
    keys = Keys(hf, DEFAULTS)
    mixers = (_attention(keys),) * keys.integer("num_hidden_layers")
    return multiplied(keys, mixers, logit_scale=1 / keys["logits_scaling"])


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type granite."""
    return write_multiplied(cfg) | {"logits_scaling": 1 / cfg.logit_scale}


def swa_from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type granite_swa."""
    keys = Keys(hf, SWA_DEFAULTS)
    layers = range(keys.integer("num_hidden_layers"))
    default = ["sliding_attention" if i % 4 else "full_attention" for i in layers]
    mixers = tuple(
        _attention(keys, window=window, rope=rope, sinks=True)
        for window, rope in zip(parts.layer_windows(keys, default), _ropes(keys), strict=True)
    )
    return multiplied(keys, mixers, logit_scale=1 / keys["logits_scaling"])


def swa_to_hf(cfg: Config) -> dict:
    """The config keys of model_type granite_swa."""
    ropes = [layer.mixer.rope for layer in cfg.layers]
    return {
        **to_hf(cfg),
        **parts.windows(cfg),
        **parts.write_first_rope(cfg),
        "layer_rope_theta": [0 if rope is None else rope.theta for rope in ropes],
    }


def _attention(keys: Keys, **fields) -> Attention:
    scale = float(keys["attention_multiplier"])
    return parts.attention(keys, keys["attention_bias"], scale=scale, **fields)


def _ropes(keys: Keys) -> list[Rope | None]:
    """The rotation of each layer, by its own theta; None where that is 0."""
    layers, thetas = keys.integer("num_hidden_layers"), keys["layer_rope_theta"]
    rope = read_rope(keys, parts.head_dim(keys))
    if thetas is None:
        return [rope] * layers
    if len(thetas) != layers:
        raise keys.error("layer_rope_theta", f"it must have all {layers} layers")
    return [replace(rope, theta=float(theta)) if theta else None for theta in thetas]


def multiplied(
    keys: Keys, mixers: tuple[Attention, ...], logit_scale: float, placement: Placement = "pre"
) -> Config:
    """The decoder of these mixers and of the multipliers; closes `keys`."""
    norm = Norm(float(keys["rms_norm_eps"]))
    ffn = MLP(keys.integer("intermediate_size"), keys.activation(), bool(keys["mlp_bias"]))
    added = float(keys["residual_multiplier"])
    layers = tuple(Layer(mixer, ffn, norm, placement, residual_scale=added) for mixer in mixers)
    return parts.decoder(
        keys, layers, norm,
        embed_scale=float(keys["embedding_multiplier"]), logit_scale=float(logit_scale),
    )  # fmt: skip


def write_multiplied(cfg: Config) -> dict:
    """The config keys of `multiplied`, except logits_scaling."""
    layer = cfg.layers[0]
    return {
        **parts.common(cfg),
        **parts.heads(layer.mixer),
        **parts.dense(layer.ffn),
        "mlp_bias": layer.ffn.bias,
        "embedding_multiplier": cfg.embed_scale,
        "residual_multiplier": layer.residual_scale,
        "attention_multiplier": layer.mixer.scale,
    }


def _preset(layers, d, n, f, logits, vocab=100352, theta=1e7, added=0.22) -> Config:
    norm, h = Norm(1e-5), d // n
    mixer = Attention(n, 8, h, Rope(h, theta), scale=1 / h)
    stacks = stack_layers((Layer(mixer, MLP(f), norm, residual_scale=added),) * layers)
    return Config(
        vocab, d, stacks, norm, True, 131072, "granite", embed_scale=12.0, logit_scale=1 / logits
    )


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
    model_type="granite",
    architecture="GraniteForCausalLM",
    table=(*parts.TOP, *parts.NORMS, *parts.ATTENTION, *parts.FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "granite-3.3-2b": _preset(40, 2048, 32, 8192, 8.0, 49159),
        "granite-3.3-8b": _preset(40, 4096, 32, 12800, 16.0, 49159),
        "granite-4.1-3b": _preset(40, 2560, 40, 8192, 10.0),
        "granite-4.1-8b": _preset(40, 4096, 32, 12800, 16.0),
        "granite-4.1-30b": _preset(64, 4096, 32, 32768, 16.0, theta=5e7, added=0.175),
    },
)
SWA = Family(
    model_type="granite_swa",
    architecture="GraniteSWAForCausalLM",
    table=(*FAMILY.table, Row(parts.IN_ATTENTION + "sinks", "attn/sinks", Same())),
    from_hf=swa_from_hf,
    to_hf=swa_to_hf,
    presets={"granite-swash-2b": _swash()},
)
