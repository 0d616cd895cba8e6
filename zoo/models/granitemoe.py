"""Granite 3.0 and 3.1 with experts (IBM): 1B-A400M and the like.

Differs from Granite: every layer is a mixture of experts, a softmax over the chosen ones weighs
them, and all experts of a layer are one tensor on disk, gate above up.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.table import Linear, Row, Split
from zoo.models import granite, parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **{key: value for key, value in granite.DEFAULTS.items() if key != "mlp_bias"},
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
SIZES = "num_local_experts", "intermediate_size"
IN_MOE = tables.IN_LAYER + "block_sparse_moe."
# The second name of each is that of transformers 5 in memory.
EXPERTS = tuple(
    Row(IN_MOE + name, paths, op)
    for names, paths, op in (
        (("router.layer.weight", "router.weight"), "moe/router/w", Linear()),
        (
            ("input_linear.weight", "experts.gate_up_proj"),
            ("moe/gate/w", "moe/up/w"),
            Split(-1, Linear(lead=1)),
        ),
        (("output_linear.weight", "experts.down_proj"), "moe/down/w", Linear(lead=1)),
    )
    for name in names
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type granitemoe."""
    keys = Keys(hf, DEFAULTS, granite.UNUSED)
    mixers = (granite.scaled_attention(keys),) * keys.integer("num_hidden_layers")
    moe = parts.experts(keys, *SIZES, other=None)
    return granite.multiplied(keys, mixers, 1 / keys.number("logits_scaling"), ffn=moe)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type granitemoe."""
    layer = cfg.layers[0]
    return {
        **parts.common(cfg),
        **parts.heads(layer.mixer),
        **parts.write_experts(layer.ffn, *SIZES),
        **granite.write_multipliers(cfg),
        "logits_scaling": 1 / cfg.logit_scale,
    }


def _preset(theta: float, length: int) -> Config:
    norm = Norm(1e-6)
    mixer = Attention(16, 8, 64, Rope(64, theta), scale=1 / 64)
    layer = Layer(mixer, MoE(32, 8, 512), norm, residual_scale=0.22)
    return Config(
        49155, 1024, stack_layers((layer,) * 24), norm, True, length, "granitemoe",
        embed_scale=12.0, logit_scale=1 / 6,
    )  # fmt: skip


FAMILY = Family(
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    table=(*tables.TOP, *tables.NORMS, *tables.ATTENTION, *EXPERTS),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "granite-3.0-1b-a400m": _preset(1e4, 4096),
        "granite-3.1-1b-a400m": _preset(1.5e6, 131072),
    },
)
