"""A split as one long stream of tokens on disk, and the windows that are cut out of it.

Documents are written one after the other, each as bos, its tokens, eos. Window i of length T is
tokens i*T to (i+1)*T: no token is lost and only the last window has padding. Segments, positions
and targets follow from where documents start, so the files hold two to four bytes a token and serve
every T.

    {split}.tokens   the stream, uint16 or uint32, little-endian
    {split}.starts   where each document starts in it, int64, little-endian

Axes: B windows, T positions of a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from zoo.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]

_ENCODE_AT_ONCE = 1 << 22  # Characters.


@dataclass(frozen=True)
class SplitStats:
    """What a split holds.

    Attributes:
      documents: how many.
      tokens: in the stream, bos and eos included.
      bytes: UTF-8 bytes of the text, all of which are predicted.
    """

    documents: int
    tokens: int
    bytes: int

    @property
    def targets(self) -> int:
        """How many tokens are predicted, with windows of any length: all but each bos."""
        return self.tokens - self.documents

    def windows(self, length: int) -> int:
        """How many windows of `length` tokens hold the split."""
        return -(-self.tokens // length)


def write_stream(
    folder: Path,
    split: str,
    texts: Iterable[str],
    tokenizer: Tokenizer,
    at_once: int = _ENCODE_AT_ONCE,
) -> Iterator[SplitStats]:
    """Writes the two files of a split; yields what has been written so far, now and then.

    Args:
      folder: an existing folder.
      split: its name.
      texts: its documents, none of them empty.
      tokenizer: what turns them into tokens.
      at_once: about how many characters to encode before writing.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    documents = tokens = size = 0
    with (
        open(folder / f"{split}.tokens", "wb") as stream,
        open(folder / f"{split}.starts", "wb") as at,
    ):
        for group in _groups(texts, at_once):
            codes = tokenizer.encode_batch(group)
            lengths = np.array([len(code) + 2 for code in codes], np.int64)
            starts = tokens + np.cumsum(lengths) - lengths
            for code in codes:
                stream.write(np.array([tokenizer.bos, *code, tokenizer.eos], dtype).tobytes())
            at.write(starts.astype("<i8").tobytes())
            documents += len(group)
            tokens += int(lengths.sum())
            size += sum(len(text.encode()) for text in group)
            yield SplitStats(documents, tokens, size)


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that the stream of a vocabulary needs."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True)
class Windows:
    """Cuts windows of T = `length` tokens out of a split's files, which are mapped, not read.

    `pad` fills the tokens of padding.
    """

    folder: Path
    split: str
    stats: SplitStats
    dtype: np.dtype
    length: int
    pad: int

    def __len__(self) -> int:
        return self.stats.windows(self.length)

    def check(self) -> None:
        """Raises ValueError where a file is not as long as it was when it was written."""
        sizes = {
            "tokens": self.stats.tokens * self.dtype.itemsize,
            "starts": self.stats.documents * 8,
        }
        for kind, size in sizes.items():
            file = self.folder / f"{self.split}.{kind}"
            found = file.stat().st_size if file.is_file() else 0
            if found != size:
                raise ValueError(
                    f"{file} has {found} bytes, not {size}: remove {self.folder} to prepare the "
                    "data again"
                )

    def batch(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        """Windows by number, each array i32[B, T]; a number past the end gives only padding."""
        size, length = len(numbers), self.length
        tokens = np.full((size, length), self.pad, np.int32)
        targets = np.full((size, length), -1, np.int32)
        first = np.zeros((size, length), np.int32)
        real = np.zeros((size, length), bool)
        stream, starts = self._files
        for row, number in enumerate(numbers):
            begin = int(number) * length
            end = min(begin + length, len(stream))
            if begin >= end:
                continue
            count = end - begin
            tokens[row, :count] = stream[begin:end]
            real[row, :count] = True
            following = stream[begin + 1 : end + 1]
            targets[row, : len(following)] = following
            low, high = np.searchsorted(starts, (begin, end), side="right")
            inside = starts[low:high] - begin  # Documents that start after slot 0, up to slot T.
            targets[row, inside - 1] = -1
            first[row, 0] = 1
            first[row, inside[inside < count]] = 1
        slots = np.arange(length, dtype=np.int32)
        positions = slots - np.maximum.accumulate(np.where(first, slots, 0), axis=1)
        return {
            "tokens": tokens,
            "targets": targets,
            "segment_ids": np.where(real, np.cumsum(first, axis=1, dtype=np.int32), 0),
            "positions": np.where(real, positions, 0),
        }

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_files"}

    @cached_property
    def _files(self) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.memmap(self.folder / f"{self.split}.tokens", self.dtype, "r")
        starts = np.memmap(self.folder / f"{self.split}.starts", "<i8", "r")
        return np.asarray(tokens), np.asarray(starts)


def _groups(texts: Iterable[str], at_once: int) -> Iterator[list[str]]:
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= at_once:
            yield group
            group, size = [], 0
    if group:
        yield group
