"""The registry of families: presets by name, configs read and written by model_type.

To add a family, write one file with a `FAMILY` and list it in `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from zoo.config import Config, stack_layers
from zoo.hf.keys import IRRELEVANT
from zoo.models import (
    axk1,
    deepseek_v2,
    deepseek_v3,
    deepseek_v32,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    exaone4,
    exaone_moe,
    flint,
    gemma,
    gemma2,
    gemma3,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    glm_moe_dsa,
    gpt_oss,
    granite,
    granite_swa,
    granitemoe,
    hunyuan_v1_dense,
    hunyuan_v1_moe,
    hy_v3,
    hyperclovax,
    kimi_linear,
    kolibri1,
    laguna,
    llama,
    llama4,
    mellum,
    mimo_v2_flash,
    minimax_m2,
    ministral3,
    mistral,
    mistral4,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    phimoe,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5,
    qwen3_moe,
    qwen3_next,
    qwen_vl,
    seed_oss,
    smollm3,
    solar_open,
    stablelm,
    yi_lightning,
    youtu,
)
from zoo.models.family import Family, Storage, Wrapper, wrapped

FAMILIES: tuple[Family, ...] = (
    axk1.FAMILY,
    deepseek_v2.FAMILY,
    deepseek_v3.FAMILY,
    deepseek_v32.FAMILY,
    dots1.FAMILY,
    ernie4_5.FAMILY,
    ernie4_5_moe.FAMILY,
    exaone4.FAMILY,
    exaone_moe.FAMILY,
    flint.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    glm.FAMILY,
    glm4.FAMILY,
    glm4_moe.FAMILY,
    glm4_moe_lite.FAMILY,
    glm_moe_dsa.FAMILY,
    gpt_oss.FAMILY,
    granite.FAMILY,
    granite_swa.FAMILY,
    granitemoe.FAMILY,
    hunyuan_v1_dense.FAMILY,
    hunyuan_v1_moe.FAMILY,
    hy_v3.FAMILY,
    hyperclovax.FAMILY,
    kimi_linear.FAMILY,
    kolibri1.FAMILY,
    laguna.FAMILY,
    llama.FAMILY,
    llama4.FAMILY,
    mellum.FAMILY,
    mimo_v2_flash.FAMILY,
    minimax_m2.FAMILY,
    ministral3.FAMILY,
    mistral.FAMILY,
    mistral.MINISTRAL,
    mistral4.FAMILY,
    mixtral.FAMILY,
    olmo2.FAMILY,
    olmo3.FAMILY,
    olmoe.FAMILY,
    phi3.FAMILY,
    phimoe.FAMILY,
    qwen2.FAMILY,
    qwen2_moe.FAMILY,
    qwen3.FAMILY,
    qwen3_5.FAMILY,
    qwen3_5.MOE_FAMILY,
    qwen3_moe.FAMILY,
    qwen3_next.FAMILY,
    qwen_vl.FAMILY_2,
    qwen_vl.FAMILY_3,
    qwen_vl.MOE_FAMILY_3,
    seed_oss.FAMILY,
    smollm3.FAMILY,
    solar_open.FAMILY,
    stablelm.FAMILY,
    yi_lightning.FAMILY,
    youtu.FAMILY,
)

WRAPPERS: tuple[Wrapper, ...] = (
    deepseek_v3.WRAPPER,
    gemma3.WRAPPER,
    llama4.WRAPPER,
    ministral3.WRAPPER,
    qwen3_5.WRAPPER,
    qwen3_5.MOE_WRAPPER,
    *qwen_vl.WRAPPERS,
)


def presets() -> tuple[str, ...]:
    """The names that `config` knows."""
    return tuple(name for f in FAMILIES for name in (*f.presets, *f.sketches))


def sketches() -> tuple[str, ...]:
    """Those of `presets` that are no released model: their sizes are invented."""
    return tuple(name for f in FAMILIES for name in f.sketches)


def config(name: str) -> Config:
    """A released model's Config, or a sketch's, by name; no network.

    Raises:
        ValueError: if there is no such preset; the message lists the nearest.
    """
    for found in FAMILIES:
        for known in (found.presets, found.sketches):
            if name in known:
                return known[name]
    near = difflib.get_close_matches(name.lower(), presets(), n=5)
    hint = f"near are {', '.join(near)}; " if near else ""
    raise ValueError(f"no preset {name!r}: {hint}zoo.presets() and `zoo list` have all")


def family(model_type: str) -> Family:
    """The family of a Hugging Face model_type.

    Raises:
        ValueError: if there is no such family.
    """
    for found in FAMILIES:
        if model_type == found.model_type or model_type in found.aliases:
            return found
    known = ", ".join(t for f in FAMILIES for t in (f.model_type, *f.aliases))
    raise ValueError(
        f"model_type={model_type!r} is not a family known here: CONTRIBUTING.md says how to add "
        f"one. Known are {known}"
    )


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
    whole = wrapper(hf)
    text = hf if whole is None else _text_part(hf, whole)
    found = family(text["model_type"])
    read = found if whole is None else whole
    known = (read.architecture, *read.other_architectures)
    named = hf.get("architectures") or ()
    for architecture in named if isinstance(named, list | tuple) else (named,):
        if architecture not in known:
            raise ValueError(
                f"architecture {architecture!r} of model_type {hf['model_type']!r} is not known; "
                f"only {' or '.join(known)} is"
            )
    return found.from_hf(text)


def wrapper(hf: Mapping) -> Wrapper | None:
    """The wrapper of a config that has several parts."""
    return next((w for w in WRAPPERS if w.model_type == hf["model_type"]), None)


def storage(cfg: Config, hf: Mapping | None = None) -> Storage:
    """Where a folder with the config `hf`, or a new one, holds the parameters of `cfg`."""
    found = family(cfg.family)
    whole = None if hf is None else wrapper(hf)
    plain = Storage(found.table, found.extras, found.copies, found.zeros)
    held = plain if whole is None else wrapped(found, whole)
    return held.numbered(len(cfg.layers), len(cfg.mtp))


def _text_part(hf: Mapping, whole: Wrapper) -> dict:
    """The text part's config.

    Raises:
        ValueError: the whole has no text part, one of another family, or a key that is not known.
    """
    if whole.flat and whole.text not in hf:
        text = {key: value for key, value in hf.items() if key not in whole.keys}
        return text | {"model_type": whole.families[0]}
    text = hf.get(whole.text)
    if not isinstance(text, Mapping):
        raise ValueError(f"{whole.model_type} config: {whole.text}={text!r} must be an object")
    text = {"model_type": whole.families[0], **text}
    if text["model_type"] not in whole.families:
        raise ValueError(
            f"{whole.model_type} config: {whole.text}.model_type={text['model_type']!r} must be "
            f"one of {', '.join(whole.families)}"
        )
    for key in hf:
        if key not in whole.keys | IRRELEVANT | {whole.text, "model_type", *whole.inherited}:
            raise ValueError(
                f"{whole.model_type} config: {key}={hf[key]!r} is not understood: remove it from "
                "the config if the text part's output does not depend on it"
            )
    outer = {key: hf[key] for key in whole.inherited if key in hf}
    return outer | text | {key: hf[key] for key in whole.overruled if key in hf}


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
        reason = str(e) or "it has no layer of a kind that the family's files always describe"
        raise ValueError(f"{cfg.family} cannot express this Config: {reason}") from e
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
