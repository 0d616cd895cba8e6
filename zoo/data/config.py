"""What to read and how to cut it: one frozen dataclass, checked before any file is opened."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Source = Literal["stdlib", "glob", "tfds"]

# Fields that some sources read: setting one for another source is a mistake, not a preference.
_ONLY_FOR = {
    "files": ("glob",),
    "jsonl_field": ("glob",),
    "name": ("tfds",),
    "data_dir": ("tfds",),
    "text_feature": ("tfds",),
    "train_split": ("tfds",),
    "validation_split": ("tfds",),
    "test_split": ("tfds",),
    "validation_fraction": ("stdlib", "glob"),
    "test_fraction": ("stdlib", "glob"),
}


@dataclass(frozen=True)
class DataConfig:
    """Which text, which tokenizer, which windows.

    Attributes:
      source: "stdlib" reads the Python standard library's .py files without its tests; "glob" reads
        `files`; "tfds" reads a dataset already prepared on disk.
      files: glob patterns (`**` recurses, `~` expands). A file is one document, except that each
        line of a .jsonl file is one.
      jsonl_field: the field of a .jsonl line that holds the text.
      name: a TFDS name, "name", "name/config" or "name/config:version".
      data_dir: where TFDS keeps it, or the folder that holds its dataset_info.json, in which case
        `name` is not needed.
      text_feature: the feature that holds the text.
      train_split, validation_split, test_split: what TFDS calls them; slices such as
        "train[:98%]" are allowed, and None leaves a split out.
      validation_fraction, test_fraction: for "stdlib" and "glob", the share of documents in each,
        by their hash; 0 leaves a split out.
      tokenizer: a tokenizer.json or a folder with one. None trains a byte-level BPE on "train".
      eos_token: the token that ends a document, where the given tokenizer does not say.
      vocab_size: of the BPE that is trained, in tokens, specials included. A small corpus may give
        fewer: `Prepared.vocab_size` is what the model needs.
      window: length T of a window, in tokens.
      batch: rows of the global batch, over all processes.
      seed: of the order of windows.
    """

    source: Source = "stdlib"
    files: tuple[str, ...] = ()
    jsonl_field: str = "text"
    name: str | None = None
    data_dir: str | None = None
    text_feature: str = "text"
    train_split: str = "train"
    validation_split: str | None = "validation"
    test_split: str | None = "test"
    validation_fraction: float = 0.02
    test_fraction: float = 0.02
    tokenizer: str | None = None
    eos_token: str | None = None
    vocab_size: int = 4096
    window: int = 256
    batch: int = 16
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.files, str):
            object.__setattr__(self, "files", (self.files,))
        elif isinstance(self.files, list):
            object.__setattr__(self, "files", tuple(self.files))
        if self.source not in get_args(Source):
            raise ValueError(
                f"data.source={self.source!r} must be one of {', '.join(get_args(Source))}"
            )
        self._check_types()
        self._check_numbers()
        self._check_source()

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that there will be, of train, validation and test."""
        further = ("validation", "test")
        if self.source == "tfds":
            found = {name: getattr(self, f"{name}_split") is not None for name in further}
        else:
            found = {name: getattr(self, f"{name}_fraction") > 0 for name in further}
        return ("train", *(name for name in further if found[name]))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> DataConfig:
        """Reads a dict or an `ml_collections.ConfigDict`.

        Raises:
          ValueError: a key is not a field (the nearest one is named), or a value does not fit.
        """
        values = dict(mapping.items())
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"data.{key} is not a field: {hint}Fields are {', '.join(names)}")
        return cls(**values)

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "files":
                if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
                    raise ValueError(f"data.files={value!r} must be a pattern or a list of them")
                continue
            optional = "None" in str(field.type)
            kind = {int: int, float: (int, float)}.get(type(field.default), str)
            if optional and value is None:
                continue
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = (
                    "a string" if kind is str else "a whole number" if kind is int else "a number"
                )
                raise ValueError(f"data.{field.name}={value!r} must be {wanted}")

    def _check_numbers(self) -> None:
        for name in ("vocab_size", "window", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"data.{name}={getattr(self, name)} must be positive")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"data.seed={self.seed} must be from 0 to {2**32 - 1}")
        for name in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"data.{name}={getattr(self, name)} must be at least 0 and below 1"
                )
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"data.validation_fraction={self.validation_fraction} and "
                f"data.test_fraction={self.test_fraction} leave nothing to train on: "
                "their sum must be below 1"
            )

    def _check_source(self) -> None:
        for field in dataclasses.fields(self):
            needed = _ONLY_FOR.get(field.name, (self.source,))
            value = getattr(self, field.name)
            if self.source not in needed and value != field.default:
                raise ValueError(
                    f"data.{field.name}={value!r} is not read with data.source={self.source!r}: "
                    f"set data.source={' or '.join(map(repr, needed))}, or leave it out"
                )
        if self.source == "glob" and not self.files:
            raise ValueError(
                "data.files is empty: data.source='glob' needs patterns such as 'texts/**/*.txt'"
            )
        if self.source == "tfds" and not (self.name or self.data_dir):
            raise ValueError(
                "data.name and data.data_dir are missing: data.source='tfds' needs the name of a "
                "prepared dataset, or the folder that holds its dataset_info.json"
            )
