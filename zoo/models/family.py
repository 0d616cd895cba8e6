"""What a family is: data and two pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

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
        sketches: name -> Config of models whose sizes were never published: ours are invented, and
            there is nothing that they could be equal to.
        aliases: other model types that are read as this one.
        other_architectures: names of other classes for the same, in released files.
        extras: patterns of tensors that we do not use but carry along; `{layers}` in one is the
            number of layers.
        copies: tensors of a layer of multi-token prediction that repeat one of the main model ->
            that one; `{n}` is the layer's number.
        zeros: a pattern of tensors that are zeros where a folder has none of them.
    """

    model_type: str
    architecture: str
    table: tuple[Row, ...]
    from_hf: Callable[[Mapping], Config]
    to_hf: Callable[[Config], dict]
    presets: Mapping[str, Config]
    sketches: Mapping[str, Config] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    other_architectures: tuple[str, ...] = ()
    extras: tuple[str, ...] = (INV_FREQ,)
    copies: Mapping[str, str] = field(default_factory=dict)
    zeros: str | None = None


@dataclass(frozen=True)
class Wrapper:
    """A model of several modalities whose text part is a family here.

    The text part is loaded. The others' tensors are extras, so that a folder goes back whole;
    without one, the text part is written as the family that it is.

    Attributes:
        model_type: of the whole.
        architecture: the class of transformers that reads the whole.
        families: model types that the text part may have; the first where its config has none.
        prefixes: what the text family's tensor names begin with -> with what they begin here, one
            mapping for each of the ways in which files are written, the usual one first.
        extras: patterns of tensors of the other parts.
        keys: keys of the whole's config beside the text part's, which do not change the text.
        text: the key of the text part's config.
        flat: whether the text part's keys may stand beside the others' instead.
        inherited: keys of the whole's config that the text part's takes over where it lacks them,
            and `overruled` where it has them too.
        other_architectures: what the class is called in files that come with code of their own.
        rows: further rows, tried after the text family's.
    """

    model_type: str
    architecture: str
    families: tuple[str, ...]
    prefixes: tuple[Mapping[str, str], ...]
    extras: tuple[str, ...]
    keys: frozenset[str] = frozenset()
    text: str = "text_config"
    flat: bool = False
    inherited: tuple[str, ...] = ("tie_word_embeddings",)
    overruled: tuple[str, ...] = ()
    other_architectures: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Storage:
    """How a folder holds a model.

    Attributes:
        table: where parameters are.
        extras: patterns of tensors that are carried along.
        copies: as in `Family`, and so `zeros`.
    """

    table: tuple[Row, ...]
    extras: tuple[str, ...]
    copies: Mapping[str, str]
    zeros: str | None = None

    @property
    def tied(self) -> dict[str, str]:
        """An output matrix's name -> that of the embeddings that it may repeat."""
        embeds = [row.disk for row in self.table if row.paths == ("embed/table",)]
        heads = [row.disk for row in self.table if row.paths == ("head/w",)]
        return dict(zip(heads, embeds, strict=False))

    def unwritten(self, names: Collection[str], present: Collection[str]) -> set[str]:
        """Those of `names` that a folder of the tensors `present` leaves out because they are 0."""
        found = {n for n in names if self.zeros and re.fullmatch(self.zeros, n)}
        return set() if found & set(present) else found

    def numbered(self, layers: int, depths: int) -> Storage:
        """The same with names instead of patterns in `copies`."""
        numbers = range(layers, layers + depths)
        named = {a.format(n=n): b for a, b in self.copies.items() for n in numbers}
        return replace(self, copies=named)


def wrapped(family: Family, wrapper: Wrapper) -> Storage:
    """The storage of `family` inside of `wrapper`."""

    def rename(name: str, prefixes: Mapping[str, str]) -> str:
        ours = next(p for p in sorted(prefixes, key=len, reverse=True) if name.startswith(p))
        return prefixes[ours] + name[len(ours) :]

    table = tuple(
        replace(row, disk=rename(row.disk, prefixes))
        for prefixes in wrapper.prefixes
        for row in (*family.table, *wrapper.rows)
    )
    quoted = [{re.escape(a): re.escape(b) for a, b in p.items()} for p in wrapper.prefixes]
    extras = (rename(pattern, prefixes) for prefixes in quoted for pattern in family.extras)
    copies = {
        rename(a, prefixes): rename(b, prefixes)
        for prefixes in wrapper.prefixes
        for a, b in family.copies.items()
    }
    return Storage(table, (*extras, *wrapper.extras), copies)
