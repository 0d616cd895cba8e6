"""The registry of families: presets by name, configs read and written by model_type.

To add a family, write one file with a `FAMILY` and list it in `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

from zoo.config import Config, stack_layers
from zoo.models import deepseek_v3, llama, qwen3, qwen3_moe
from zoo.models.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    deepseek_v3.FAMILY,
)


def presets() -> tuple[str, ...]:
    """The names that `config` knows."""
    return tuple(name for family in FAMILIES for name in family.presets)


def config(name: str) -> Config:
    """A released model's Config, by name; no network.

    Raises:
        ValueError: if there is no such preset.
    """
    for family in FAMILIES:
        if name in family.presets:
            return family.presets[name]
    raise ValueError(f"no preset {name!r}; known are {', '.join(presets())}")


def family(model_type: str) -> Family:
    """The family of a Hugging Face model_type.

    Raises:
        ValueError: if there is no such family.
    """
    for found in FAMILIES:
        if model_type == found.model_type or model_type in found.aliases:
            return found
    known = ", ".join(t for f in FAMILIES for t in (f.model_type, *f.aliases))
    raise ValueError(f"model_type={model_type!r} is not a family known here; known are {known}")


def config_from_hf(source: str | os.PathLike | Mapping) -> Config:
    """Reads a Hugging Face config.

    Args:
        source: a folder with a config.json, the file itself, or its dict.

    Raises:
        ValueError: for an unknown model_type or architecture, and for a key that is not understood.
    """
    hf = source if isinstance(source, Mapping) else _read(Path(source))
    if "model_type" not in hf:
        raise ValueError("the config has no model_type; is it a Hugging Face config.json?")
    found = family(hf["model_type"])
    for architecture in hf.get("architectures") or ():
        if architecture != found.architecture:
            raise ValueError(
                f"architecture {architecture!r} of model_type {hf['model_type']!r} is not known; "
                f"only {found.architecture} is"
            )
    return found.from_hf(hf)


def config_to_hf(cfg: Config) -> dict:
    """A config dict that transformers 4 and 5 read as this model.

    Raises:
        ValueError: if the family that `cfg` names cannot express it.
    """
    found = family(cfg.family)
    try:
        hf = {"architectures": [found.architecture], "model_type": found.model_type}
        hf |= found.to_hf(cfg)
    except (AttributeError, StopIteration, IndexError) as e:
        raise ValueError(f"{cfg.family} cannot express this Config: {e}") from e
    difference = _difference(_flat(cfg), _flat(found.from_hf(hf)))
    if difference:
        raise ValueError(f"{cfg.family} cannot express this Config: {difference}")
    return hf


def _read(path: Path) -> dict:
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a folder with a config.json")
    try:
        hf = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path} is not JSON: {e}") from e
    if not isinstance(hf, dict):
        raise ValueError(f"{path} holds a {type(hf).__name__}, not an object")
    return hf


def _flat(cfg: Config) -> Config:
    """The same layers whatever the stacks that they are grouped in."""
    return dataclasses.replace(cfg, stacks=stack_layers(cfg.layers))


def _difference(a: object, b: object, path: str = "Config") -> str:
    """The first field in which two values differ, as text; empty if none does."""
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        pairs = [
            (f".{f.name}", getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)
        ]
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        pairs = [(f"[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return "" if a == b else f"{path}={a!r} would be read back as {b!r}"
    return next(filter(None, (_difference(x, y, path + name) for name, x, y in pairs)), "")
