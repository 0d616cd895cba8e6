"""What a family is: data and two pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zoo.config import Config
from zoo.hf.table import Row

INV_FREQ = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # in files of early transformers


@dataclass(frozen=True)
class Family:
    """How one Hugging Face model type maps to a Config, and its tensors to parameters.

    Attributes:
        model_type: the `model_type` that it is written as.
        architecture: the class of transformers that it is written for.
        table: where every parameter is on disk.
        from_hf: reads a config dict; refuses keys that it does not understand.
        to_hf: writes keys that transformers 4 and 5 both read.
        presets: name -> Config of released models.
        aliases: other model types that are read as this one.
        extras: patterns of tensors that we do not use but carry along; `{layers}` in one is the
            number of layers.
    """

    model_type: str
    architecture: str
    table: tuple[Row, ...]
    from_hf: Callable[[Mapping], Config]
    to_hf: Callable[[Config], dict]
    presets: Mapping[str, Config]
    aliases: tuple[str, ...] = ()
    extras: tuple[str, ...] = (INV_FREQ,)
