"""Prepares a config's data once, and keeps it: dataset, tokenizer and token streams.

    cache/corpora/{key}/zoo_text/1.0.0/    a TFDS dataset of array_record (not for source "tfds")
    cache/tokenizers/{key}/tokenizer.json  unless config.tokenizer names one
    cache/tokens/{key}/                    streams and prepared.json

A key is a hash of everything that decides the content, so nothing is ever out of date. Folders
appear by a rename when they are complete. One process works at a time, the others wait.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from absl import logging

from zoo.data import disk, sources, stream
from zoo.data.config import DataConfig
from zoo.data.tokenizer import (
    Tokenizer,
    check_vocab_size,
    load_tokenizer,
    sample,
    train_tokenizer,
)

_FORMAT = 1  # Of the streams and of the tokenizer's training; part of the keys.
_TRAIN_BYTES = 1 << 28  # A BPE of usual size does not change much with more text.


@dataclass(frozen=True)
class Prepared:
    """Data that is ready to be read.

    Streams serve windows of any length: `dataclasses.replace(prepared, window=512)` changes it.

    Attributes:
      config: what it was made from.
      folder: of the token streams.
      tokenizer: with `folder`, `vocab_size`, `bos`, `eos` and `pad`.
      window: length T of the windows, in tokens.
      splits: name to `SplitStats`, in the order train, validation, test.
      corpus_sha256: of the texts (files) or of the record files (TFDS).
      sha256: of all that decides the streams: corpus, splits and tokenizer. Two runs with the same
        value, window, batch and seed see the same batches.
    """

    config: DataConfig
    folder: Path
    tokenizer: Tokenizer
    window: int
    splits: Mapping[str, stream.SplitStats]
    corpus_sha256: str
    sha256: str

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def tokenizer_sha256(self) -> str:
        return self.tokenizer.sha256

    def windows(self, split: str) -> stream.Windows:
        """The windows of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"There is no split {split!r}: this data has {', '.join(self.splits)}")
        dtype = stream.token_dtype(self.vocab_size)
        return stream.Windows(
            self.folder, split, self.splits[split], dtype, self.window, self.tokenizer.pad
        )

    def summary(self) -> dict[str, Any]:
        """What to record with a run, as JSON can hold it."""
        return {
            "corpus_sha256": self.corpus_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "sha256": self.sha256,
            "vocab_size": self.vocab_size,
            "window": self.window,
            "splits": {
                name: {**dataclasses.asdict(s), "targets": s.targets}
                for name, s in self.splits.items()
            },
        }


def default_cache_dir() -> Path:
    """$ZOO_CACHE, or ~/.cache/zoo."""
    return Path(os.environ.get("ZOO_CACHE") or "~/.cache/zoo").expanduser()


def prepare(config: DataConfig, cache_dir: str | Path | None = None) -> Prepared:
    """Reads, splits, tokenises and packs what `config` names, or finds it done.

    Args:
      config: what to read.
      cache_dir: where to keep it; `default_cache_dir()` if None.

    Raises:
      ValueError: the config names nothing usable; the message names the field and the remedy.
      OSError: a file cannot be read, or the cache not be written.
    """
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    tokenizer = None
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    else:
        check_vocab_size(config.vocab_size)
    text = _Text(config, cache)
    found = _find(config, cache, text, tokenizer)
    if found is None:
        try:
            with disk.locked(cache):
                _make(config, cache, text, tokenizer)
        except OSError as error:
            raise OSError(
                f"data could not be prepared in {cache}: {error}. Finished parts are kept. If the "
                "disk is full, free some of it or set another cache folder, for example with "
                "ZOO_CACHE"
            ) from error
        found = _find(config, cache, text, tokenizer)
    for split in found.splits:
        found.windows(split).check()
    return found


class _Text:
    """The texts of a config: scanned files or a TFDS dataset; kept as TFDS before they are read."""

    def __init__(self, config: DataConfig, cache: Path):
        self._cache = cache
        if config.source == "tfds":
            from zoo.data import text

            self._source = self._dataset = text.find(config)
        else:
            self._source = sources.scan(config)

    @property
    def sha256(self) -> str:
        return self._source.sha256

    @property
    def key(self) -> str:
        return self._source.key

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._source.splits)

    @cached_property
    def _dataset(self) -> Any:
        from zoo.data import text

        return text.build(self._source, self._cache / "corpora" / self.key[:16])

    def bytes(self, split: str) -> int:
        return self._dataset.bytes(split)

    def read(self, split: str) -> Iterator[str]:
        return self._dataset.texts(split)


def _find(
    config: DataConfig, cache: Path, text: _Text, tokenizer: Tokenizer | None
) -> Prepared | None:
    if tokenizer is None:
        folder = _tokenizer_folder(config, cache, text)
        if not folder.exists():
            return None
        tokenizer = load_tokenizer(folder)
    sha256 = _hash(_FORMAT, text.key, tokenizer.sha256)
    folder = cache / "tokens" / sha256[:16]
    if not folder.exists():
        return None
    stats = json.loads((folder / "prepared.json").read_text())["splits"]
    splits = {name: stream.SplitStats(**stats[name]) for name in text.splits}
    return Prepared(config, folder, tokenizer, config.window, splits, text.sha256, sha256)


def _make(config: DataConfig, cache: Path, text: _Text, tokenizer: Tokenizer | None) -> None:
    """Makes what is missing. Only for who holds the lock: another may have made it meanwhile."""
    disk.remove_unfinished(cache / "tokenizers")
    disk.remove_unfinished(cache / "tokens")
    if tokenizer is None:
        folder = _tokenizer_folder(config, cache, text)
        if not folder.exists():
            _train(config, text, folder)
        tokenizer = load_tokenizer(folder)
    sha256 = _hash(_FORMAT, text.key, tokenizer.sha256)
    final = cache / "tokens" / sha256[:16]
    if final.exists():
        return
    stats = {}
    with disk.new_folder(final) as folder:
        for split in text.splits:
            stats[split] = dataclasses.asdict(_tokenize(folder, split, text, tokenizer))
        about = {
            "format": _FORMAT,
            "sha256": sha256,
            "corpus_sha256": text.sha256,
            "tokenizer_sha256": tokenizer.sha256,
            "splits": stats,
        }
        (folder / "prepared.json").write_text(json.dumps(about, indent=2) + "\n")


def _train(config: DataConfig, text: _Text, final: Path) -> None:
    total = text.bytes("train")
    with (
        disk.new_folder(final) as folder,
        disk.progress("Training a tokenizer, reading", min(total, _TRAIN_BYTES)) as done,
    ):
        texts = sample(text.read("train"), _TRAIN_BYTES, total)
        train_tokenizer(_counted(texts, done), config.vocab_size, folder)


def _tokenize(folder: Path, split: str, text: _Text, tokenizer: Tokenizer) -> stream.SplitStats:
    stats = stream.SplitStats(0, 0, 0)
    with disk.progress(f"Tokenising {split}", text.bytes(split)) as done:
        for now in stream.write_stream(folder, split, text.read(split), tokenizer):
            done(now.bytes - stats.bytes)
            stats = now
    if not stats.documents:
        raise ValueError(f"Split {split!r} holds only empty documents: name another")
    logging.info("%s: %d documents, %d tokens", split, stats.documents, stats.tokens)
    return stats


def _counted(texts: Iterator[str], done: Any) -> Iterator[str]:
    for text in texts:
        yield text
        done(len(text))


def _tokenizer_folder(config: DataConfig, cache: Path, text: _Text) -> Path:
    return cache / "tokenizers" / _hash(_FORMAT, text.key, config.vocab_size)[:16]


def _hash(*parts: object) -> str:
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()
