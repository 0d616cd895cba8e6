"""HyperCLOVA X SEED (arXiv:2404.01954).

Differs from Granite: logits_scaling multiplies the logits, a scale of the scores that is absent is
head_dim**-0.5, and norms stand behind the parts as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.table import Row, Same
from zoo.models import granite, parts, tables
from zoo.models.family import Family

DEFAULTS = granite.DEFAULTS | {"attention_multiplier": None, "use_post_norm": True}
NORMS = (
    Row(tables.IN_LAYER + "input_layernorm.weight", "attn_norm/scale", Same()),
    Row(tables.IN_LAYER + "post_norm1.weight", "attn_post_norm/scale", Same()),
    Row(tables.IN_LAYER + "post_attention_layernorm.weight", "ffn_norm/scale", Same()),
    Row(tables.IN_LAYER + "post_norm2.weight", "ffn_post_norm/scale", Same()),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type hyperclovax."""
    keys = Keys(hf, DEFAULTS)
    scale = keys["attention_multiplier"]
    mixer = parts.attention(
        keys, keys["attention_bias"], scale=None if scale is None else float(scale)
    )
    mixers = (mixer,) * keys.integer("num_hidden_layers")
    placement = "sandwich" if keys["use_post_norm"] else "pre"
    return granite.multiplied(keys, mixers, keys.number("logits_scaling"), placement)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type hyperclovax."""
    return granite.write_multiplied(cfg) | {
        "logits_scaling": cfg.logit_scale,
        "use_post_norm": cfg.layers[0].placement == "sandwich",
    }


def _think_14b() -> Config:
    """Heads and multipliers are those of a page about the released config.

    From memory: depth, width of the MLP, vocabulary, theta, eps and length; the card's 14.74B
    parameters agree.
    """
    norm = Norm(1e-5)
    mixer = Attention(48, 8, 128, Rope(128, 1e8), scale=1 / 128)
    layer = Layer(mixer, MLP(14336), norm, "sandwich")
    stacks, family = stack_layers((layer,) * 38), "hyperclovax"
    return Config(
        110592, 6144, stacks, norm, max_length=131072, family=family, embed_scale=10.0,
        logit_scale=0.125,
    )  # fmt: skip


FAMILY = Family(
    model_type="hyperclovax",
    architecture="HyperCLOVAXForCausalLM",
    table=(*tables.TOP, *NORMS, *tables.ATTENTION, *tables.FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"hyperclovax-think-14b": _think_14b()},
)
