"""zoo: every open decoder LLM as one small, typed, pure-functional JAX core.

    cfg = zoo.config("qwen3-0.6b")
    model = zoo.Decoder(cfg)
    ckpt = zoo.load("path/to/hf-folder")
    out = model.apply(ckpt.params, tokens)

Read on in `zoo.config` (what a model is), `zoo.decoder` (what it does) and `zoo.models` (the
families). Names are imported when they are first used, so that taking one part costs that part
only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo.config import (
    MLA,
    MLP,
    Attention,
    Config,
    GatedDelta,
    Layer,
    LinearScaling,
    Llama3Scaling,
    MoE,
    Norm,
    Rope,
    Stack,
    YarnScaling,
)

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zoo.decoder import Decoder, Output
    from zoo.hf.load import Checkpoint, load
    from zoo.hf.save import save_hf
    from zoo.hf.verify import verify
    from zoo.inference.generate import generate
    from zoo.models import config_from_hf, config_to_hf, presets
    from zoo.rounding import quantize
    from zoo.sharding import make_mesh

_HOME = {
    "Decoder": "decoder", "Output": "decoder",
    "config_from_hf": "models", "config_to_hf": "models", "presets": "models",
    "Checkpoint": "hf.load", "load": "hf.load", "save_hf": "hf.save", "verify": "hf.verify",
    "generate": "inference.generate", "quantize": "rounding", "make_mesh": "sharding",
}  # fmt: skip

__all__ = [  # noqa: RUF022 (in reading order)
    "config", "presets", "config_from_hf", "config_to_hf", "Decoder", "Output",
    "load", "save_hf", "verify", "Checkpoint", "quantize", "generate", "make_mesh",
    "Config", "Stack", "Layer", "Attention", "MLA", "GatedDelta", "MLP", "MoE", "Rope", "Norm",
    "LinearScaling", "Llama3Scaling", "YarnScaling",
]  # fmt: skip


def config(name: str) -> Config:
    """The preset called `name`; `presets()` lists them. (The module of types is `zoo.config` too.)

    Raises:
        ValueError: no preset of that name; the message lists the nearest.
    """
    from zoo import models

    return models.config(name)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"zoo.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
