"""Documents from files: which files, which documents, and which split each belongs to.

A document's split follows from its own bytes alone (their sha256 as a fraction of 1), so it stays
where it is when files are added, moved or renamed, and two copies never straddle two splits.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from absl import logging

from zoo.data.config import DataConfig

SPLITS = ("train", "validation", "test")

# Folders of the standard library that hold tests, other people's packages or built files.
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """A text, its UTF-8 bytes being `data`, and where it came from: "file" or "file:line"."""

    name: str
    data: bytes

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.data).digest()


@dataclass(frozen=True)
class Split:
    """What a scan saw of one split; `sha256` is over the digests of its documents in order."""

    documents: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """Files that were read once: their documents' hash, and what each split will get.

    `sha256` is over the sha256 of every document in order: it depends on the texts and on nothing
    else. `key` also takes in how they are split.
    """

    files: tuple[Path, ...]
    root: Path
    jsonl_field: str
    fractions: tuple[float, float]
    sha256: str
    splits: Mapping[str, Split]

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.sha256} {self.fractions}".encode()).hexdigest()

    def documents(self, split: str) -> Iterator[Document]:
        """Yields the documents of a split in the order of the scan.

        Raises:
          ValueError: a file changed since the scan.
        """
        digests = hashlib.sha256()
        for document in read_documents(self.files, self.root, self.jsonl_field, []):
            digest = document.digest
            if split_of(digest, self.fractions) == split:
                digests.update(digest)
                yield document
        if digests.hexdigest() != self.splits[split].sha256:
            raise ValueError(
                f"A file under {self.root} changed while split {split!r} was read: run this again "
                "when nothing writes there"
            )


def scan(config: DataConfig) -> Corpus:
    """Finds and reads the files of a "stdlib" or "glob" config once, to hash and to count.

    Raises:
      ValueError: a pattern matches no file, no file holds text, or a split gets no document.
    """
    if config.source == "stdlib":
        files, root = stdlib_files()
        label = f"the standard library at {root}"
    else:
        files, root = glob_files(config.files)
        _check_field(config, files)
        label = f"data.files={config.files!r}"
    fractions = (config.validation_fraction, config.test_fraction)
    skipped: list[str] = []
    whole = hashlib.sha256()
    hashes = {name: hashlib.sha256() for name in SPLITS}
    counts = dict.fromkeys(SPLITS, 0)
    sizes = dict.fromkeys(SPLITS, 0)
    for document in read_documents(files, root, config.jsonl_field, skipped):
        digest = document.digest
        split = split_of(digest, fractions)
        whole.update(digest)
        hashes[split].update(digest)
        counts[split] += 1
        sizes[split] += len(document.data)
    if skipped:
        shown = ", ".join(skipped[:20]) + (", ..." if len(skipped) > 20 else "")
        logging.warning("Skipped %d files or lines that are not UTF-8: %s", len(skipped), shown)
    wanted = {"train": 1 - sum(fractions), "validation": fractions[0], "test": fractions[1]}
    _check_counts(counts, wanted, label, len(files))
    splits = {
        name: Split(counts[name], sizes[name], hashes[name].hexdigest())
        for name in SPLITS
        if wanted[name]
    }
    return Corpus(tuple(files), root, config.jsonl_field, fractions, whole.hexdigest(), splits)


def split_of(digest: bytes, fractions: tuple[float, float]) -> str:
    """The split of a document, from its sha256 and the (validation, test) fractions."""
    validation, test = fractions
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < test:
        return "test"
    return "validation" if point < test + validation else "train"


def stdlib_files() -> tuple[list[Path], Path]:
    """The standard library's .py files, without tests, in order of their relative path; its root.

    Files that the build writes for one machine (`_sysconfigdata...`, `config-...`) are left out.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, names, entries in os.walk(root):
        names[:] = [n for n in names if n not in _NOT_STDLIB and not n.startswith("config-")]
        files += [
            Path(folder, e)
            for e in entries
            if e.endswith(".py") and not e.startswith("_sysconfigdata")
        ]
    if not files:
        raise ValueError(
            f"The standard library at {root} has no .py files (a zipped or stripped Python): "
            "use data.source='glob' with data.files"
        )
    return sorted(files, key=lambda f: f.relative_to(root).as_posix()), root


def glob_files(patterns: tuple[str, ...]) -> tuple[list[Path], Path]:
    """The files that the patterns match, each once and in order; the folder they share."""
    found: set[str] = set()
    for pattern in patterns:
        matches = glob.glob(os.path.expanduser(pattern), recursive=True)
        files = {os.path.abspath(m) for m in matches if os.path.isfile(m)}
        if not files:
            raise ValueError(
                f"data.files pattern {pattern!r} matches no file in {os.getcwd()}: check its "
                "spelling, or give an absolute path ('**' recurses)"
            )
        found |= files
    root = Path(os.path.commonpath([os.path.dirname(f) for f in found]))
    paths = sorted((Path(f) for f in found), key=lambda f: f.relative_to(root).as_posix())
    return paths, root


def _check_field(config: DataConfig, files: list[Path]) -> None:
    """Refuses a field that is set where no file has fields."""
    if config.jsonl_field != DataConfig.jsonl_field and all(f.suffix != ".jsonl" for f in files):
        raise ValueError(
            f"data.jsonl_field={config.jsonl_field!r} is of .jsonl files, and "
            f"data.files={config.files!r} are none: leave it out, or rename them"
        )


def read_documents(
    files: tuple[Path, ...] | list[Path], root: Path, jsonl_field: str, skipped: list[str]
) -> Iterator[Document]:
    """Yields every document that is not empty; adds the names of what is not UTF-8 to `skipped`."""
    for file in files:
        name = file.relative_to(root).as_posix()
        if file.suffix == ".jsonl":
            yield from _read_lines(file, name, jsonl_field, skipped)
            continue
        data = file.read_bytes()
        if not _is_utf8(data):
            skipped.append(name)
        elif data:
            yield Document(name, data)


def _read_lines(file: Path, name: str, field: str, skipped: list[str]) -> Iterator[Document]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not _is_utf8(line):
                skipped.append(f"{name}:{number}")
                continue
            text = _field(line.decode("utf-8-sig").strip(), field, f"{file}, line {number}")
            if text is None:
                continue
            try:
                data = text.encode("utf-8")
            except UnicodeEncodeError:  # An escape such as "\ud800" alone is JSON, but not text.
                skipped.append(f"{name}:{number}")
                continue
            if data:
                yield Document(f"{name}:{number}", data)


def _field(line: str, field: str, where: str) -> str | None:
    """The text in a line of a .jsonl file; None for an empty line."""
    if not line:
        return None
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); each line of a .jsonl file "
            "is one object"
        ) from error
    if not isinstance(row, dict) or field not in row:
        has = f"fields {', '.join(map(repr, row))}" if isinstance(row, dict) else "no fields"
        raise ValueError(f"{where}: no field {field!r}, it has {has}; set data.jsonl_field")
    if not isinstance(row[field], str):
        raise ValueError(
            f"{where}: field {field!r} is {row[field]!r:.40}, not text; set data.jsonl_field"
        )
    return row[field]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _check_counts(
    counts: Mapping[str, int], wanted: Mapping[str, float], label: str, files: int
) -> None:
    total = sum(counts.values())
    if not total:
        raise ValueError(
            f"{label} holds no text: all of its files ({files}) are empty or not UTF-8; convert "
            "them to UTF-8, or name others"
        )
    for split, fraction in wanted.items():
        if fraction and not counts[split]:
            field = "" if split == "train" else f" at data.{split}_fraction={fraction:g}"
            remedy = (
                "add documents, or lower the other fractions"
                if split == "train"
                else f"add documents, raise data.{split}_fraction, or set it to 0 for no such split"
            )
            raise ValueError(
                f"{label}: split {split!r} gets none of the {total} documents{field}: {remedy}"
            )
