"""A checkpoint's folder as it is on disk: everything that must come back byte for byte.

What we turn into a Config and parameters is a view of the folder; the rest of it (config keys that
we do not use, tensors that we do not consume, dtypes, shard boundaries, headers, tokenizer and
template files) is kept here, mostly as references, and written back by `save_hf`.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.hf.safetensors import File, Spec

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Weights of other formats, which would be stale beside the ones that we write.
OTHER_WEIGHTS = (".bin", ".bin.index.json", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
NAMED = "additional_chat_templates"
"""The folder of a tokenizer's further templates, each NAME.jinja."""


@dataclass(frozen=True)
class Source:
    """A folder that `open_source` read.

    Attributes:
        folder: where it is, or was.
        config: config.json as a dict, and `config_bytes` as it was written.
        files: the safetensors files, in the order of their names.
        index_bytes: the index of a sharded checkpoint, None for a single file.
        extras: names of tensors that the model does not use; written back from the mapped files.
        others: the remaining files of the folder: tokenizer, generation config, licence, templates
            (also those in `NAMED`).
    """

    folder: Path
    config: dict
    config_bytes: bytes
    files: tuple[File, ...]
    index_bytes: bytes | None
    others: tuple[Path, ...]
    extras: tuple[str, ...] = ()

    @functools.cached_property
    def specs(self) -> dict[str, Spec]:
        """Every tensor of every file."""
        return {name: spec for file in self.files for name, spec in file.specs.items()}

    @functools.cached_property
    def places(self) -> dict[str, File]:
        """Which file holds a tensor."""
        return {name: file for file in self.files for name in file.specs}

    @functools.cached_property
    def eos(self) -> tuple[int, ...]:
        """Tokens that end a text: generation_config.json's, else config.json's, else none."""
        path = self.folder / GENERATION
        generation = _object(path, path.read_bytes()) if path in self.others else {}
        found = generation.get("eos_token_id", self.config.get("eos_token_id"))
        return () if found is None else tuple(np.atleast_1d(found).tolist())

    def same(self, name: str, twin: str) -> bool:
        """Whether two tensors are equal byte for byte."""
        a, b = self[name], self[twin]
        equal = a.shape == b.shape and a.dtype == b.dtype
        return equal and np.array_equal(a.view("u1"), b.view("u1"))

    def __getitem__(self, name: str) -> np.ndarray:
        """A read-only view of a tensor in its mapped file."""
        return self.places[name][name]


def open_source(folder: str | os.PathLike) -> Source:
    """Reads a folder's config and headers; no tensor is read.

    Raises:
        ValueError: if the folder is not a whole safetensors checkpoint; it names what is missing.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} has no {CONFIG}; is it a Hugging Face checkpoint?")
    config_bytes = (folder / CONFIG).read_bytes()
    config = _object(folder / CONFIG, config_bytes)
    index_bytes = None
    if (folder / WEIGHTS).exists():
        files = (File(folder / WEIGHTS),)
    elif (folder / INDEX).exists():
        index_bytes = (folder / INDEX).read_bytes()
        files = _shards(folder, _object(folder / INDEX, index_bytes))
    else:
        raise ValueError(f"{folder} has neither {WEIGHTS} nor {INDEX}{_other_weights(folder)}")
    others = sorted(p for p in folder.iterdir() if p.is_file() and _is_other(p.name))
    others += named_templates(folder).values()
    return Source(folder, config, config_bytes, files, index_bytes, tuple(others))


def _other_weights(folder: Path) -> str:
    """What a folder without weights has instead, and what to do with it; empty if nothing."""
    names = sorted(p.name for p in folder.iterdir())
    if found := [name for name in names if name.endswith(OTHER_WEIGHTS)]:
        return f"; it has {', '.join(found)}: convert them to safetensors first"
    if found := [name for name in names if name.endswith(".safetensors")]:
        return f"; it has {some(found)}: fetch the index of shards, or rename a single file"
    return ""


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """What belongs to a folder's tokenizer, by name within the folder."""
    found = {name: folder / name for name in TOKENIZER if (folder / name).is_file()}
    return found | named_templates(folder)


def copy_texts(folder: Path, target: Path) -> None:
    """Copies what belongs to a folder's tokenizer, and how it wants to be sampled from."""
    generation = folder / GENERATION
    found = tokenizer_files(folder) | ({GENERATION: generation} if generation.is_file() else {})
    for name, path in found.items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)


def named_templates(folder: Path) -> dict[str, Path]:
    """Chat templates beside the one of the folder, by name within it."""
    return {f"{NAMED}/{path.name}": path for path in sorted((folder / NAMED).glob("*.jinja"))}


def _shards(folder: Path, index: dict) -> tuple[File, ...]:
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{folder / INDEX} has no weight_map")
    names = sorted(set(where.values()))
    if wrong := [n for n in names if not isinstance(n, str) or Path(n).name != n]:
        raise ValueError(f"{folder / INDEX} names a shard outside of its folder: {wrong[0]!r}")
    if missing := [n for n in names if not (folder / n).exists()]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:8])}; "
            "fetch them again"
        )
    files = tuple(File(folder / n) for n in names)
    for file in files:
        for name in file.specs:
            if where.get(name) != file.path.name:
                raise ValueError(
                    f"{file.path} holds {name}, which {INDEX} places in {where.get(name)}"
                )
    held = {name for file in files for name in file.specs}
    if lost := sorted(where.keys() - held):
        raise ValueError(f"{folder / INDEX} lists tensors that no shard holds: {some(lost)}")
    return files


def _object(path: Path, text: bytes) -> dict:
    try:
        value = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _is_other(name: str) -> bool:
    ours = name in (CONFIG, INDEX) or name.endswith((".safetensors", ".safetensors.index.json"))
    return not ours and not name.endswith(OTHER_WEIGHTS) and not name.endswith(".tmp")


def some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def json_bytes(value: dict) -> bytes:
    """As transformers writes its JSON files."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
