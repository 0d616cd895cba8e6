"""Granite (IBM) 3.x and 4.1, dense.

Differs from Llama by four multipliers (muP, arXiv:2203.03466): of the embeddings, of what each part
adds to the residual stream, of the scores instead of head_dim**-0.5, and a divisor of the logits.
Some files have dropout for training, which nothing here applies.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Placement, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import llama, parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **llama.DEFAULTS,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}
UNUSED = frozenset({"attention_dropout"})


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type granite."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    mixers = (scaled_attention(keys),) * keys.integer("num_hidden_layers")
    return multiplied(keys, mixers, logit_scale=1 / keys.number("logits_scaling"))


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type granite."""
    return write_multiplied(cfg) | {"logits_scaling": 1 / cfg.logit_scale}


def scaled_attention(keys: Keys, **fields) -> Attention:
    """Attention whose scores have a factor of their own."""
    scale = keys.number("attention_multiplier")
    return parts.attention(keys, keys["attention_bias"], scale=scale, **fields)


def multiplied(
    keys: Keys,
    mixers: tuple[Attention, ...],
    logit_scale: float,
    placement: Placement = "pre",
    ffn: MLP | MoE | None = None,
) -> Config:
    """The decoder of these mixers and of the multipliers; closes `keys`.

    `ffn` is None for the MLP of the config.
    """
    norm = Norm(keys.number("rms_norm_eps"))
    if ffn is None:
        ffn = MLP(keys.integer("intermediate_size"), keys.activation(), bool(keys["mlp_bias"]))
    added = keys.number("residual_multiplier")
    layers = tuple(Layer(mixer, ffn, norm, placement, residual_scale=added) for mixer in mixers)
    return parts.decoder(
        keys, layers, norm,
        embed_scale=keys.number("embedding_multiplier"), logit_scale=float(logit_scale),
    )  # fmt: skip


def write_multiplied(cfg: Config) -> dict:
    """The config keys of `multiplied`, except logits_scaling."""
    layer = cfg.layers[0]
    return {
        **parts.common(cfg),
        **parts.heads(layer.mixer),
        **parts.dense(layer.ffn),
        "mlp_bias": layer.ffn.bias,
        **write_multipliers(cfg),
    }


def write_multipliers(cfg: Config) -> dict:
    """The config keys of the multipliers, except logits_scaling."""
    layer = cfg.layers[0]
    return {
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


FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    table=tables.LLAMA,
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
