"""GLM-4 (arXiv:2406.12793): 9B-Chat, 9B-Chat-1M, in transformers' own layout (`-hf`).

Differs from GLM-4-0414 (`glm4`): norms stand before attention and the MLP only.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import glm4, tables
from zoo.models.family import Family

DEFAULTS = glm4.DEFAULTS | {  # what was left over when the released files were converted
    "apply_residual_connection_post_layernorm": False,
    "linear_bias": False,
    "post_layer_norm": True,
    "resid_pdrop": 0.0,
    "use_rms_norm": True,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type glm."""
    return glm4.read(Keys(hf, DEFAULTS), "pre")


def _preset(kv_heads, theta, length) -> Config:
    norm = Norm(1.5625e-7)
    mixer = Attention(32, kv_heads, 128, Rope(64, theta, interleaved=True), qkv_bias=True)
    stacks = stack_layers((Layer(mixer, MLP(13696), norm),) * 40)
    return Config(151552, 4096, stacks, norm, False, length, "glm")


FAMILY = Family(
    model_type="glm",
    architecture="GlmForCausalLM",
    table=(*tables.FUSED_GATE_UP, *tables.LLAMA),
    from_hf=from_hf,
    to_hf=glm4.to_hf,
    presets={
        "glm-4-9b-chat": _preset(2, 5e6, 131072),
        "glm-4-9b-chat-1m": _preset(4, 1e8, 1048576),
    },
)
