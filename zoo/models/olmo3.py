"""Olmo 3 (arXiv:2512.13961): 7B, 32B.

Differs from OLMo 2: three of four layers see a window, and only the others stretch their rotation
by YaRN.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Rope, YarnScaling, stack_layers
from zoo.hf.keys import Keys
from zoo.models import olmo2, parts
from zoo.models.family import Family
from zoo.models.parts import decoder, every, layer_windows, read_ropes

THETA = 500_000.0
DEFAULTS = {
    **olmo2.DEFAULTS,
    "sliding_window": 4096,
    "layer_types": None,
    "rope_theta": THETA,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type olmo3."""
    keys = Keys(hf, DEFAULTS)
    if keys["rope_theta"] != THETA and not keys["rope_parameters"]:
        fix = (
            "transformers 4 and 5 differ on windows' theta then; give rope_parameters by layer type"
        )
        raise keys.error("rope_theta", fix)
    norm = olmo2.olmo_norm(keys.number("rms_norm_eps"))
    full, local = read_ropes(keys, "rope_theta", wide=True)
    layers = tuple(
        olmo2.olmo_layer(keys, norm, full if window is None else local, window)
        for window in layer_windows(keys, default=every(4, keys))
    )
    return decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type olmo3."""
    return {**olmo2.to_hf(cfg), **parts.windows(cfg), **parts.write_ropes(cfg, "rope_theta")}


def _preset(layers, d, n, k, f) -> Config:
    norm, mlp = olmo2.olmo_norm(), MLP(f)
    yarn = YarnScaling(8.0, 8192, attention_factor=1.2079441541679836)
    local, full = (
        Layer(Attention(n, k, 128, rope, window, qk_norm=norm, norm_heads=True), mlp, norm, "post")
        for rope, window in (
            (Rope(128, THETA, wide=True), 4096),
            (Rope(128, THETA, scaling=yarn, wide=True), None),
        )
    )
    stacks = stack_layers((local, local, local, full) * (layers // 4))
    return Config(100278, d, stacks, norm, False, 65536, "olmo3")


FAMILY = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    table=olmo2.FAMILY.table,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "olmo-3-7b": _preset(32, 4096, 32, 32, 11008),
        "olmo-3-32b": _preset(64, 5120, 40, 8, 27648),
    },
)
