"""The safetensors file format: a memory-mapped reader and a streaming, atomic writer.

A file is a little-endian u64 (the size of the header), a JSON header padded with spaces to a
multiple of eight bytes, and the tensors' bytes without gaps
(https://github.com/huggingface/safetensors#format). The reader keeps the header's bytes, so that a
file can be written again exactly as it was; a new header has the reference library's order: wider
types first, then by name.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

MAX_HEADER_BYTES = 100_000_000  # the reference library's limit
SYNCED = 1 << 26  # bytes written after which the disk may begin

# In the order of the reference library's enum, which is the order (reversed) of tensors in a file.
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "C64": np.dtype(np.complex64),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
NAMES: dict[np.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


class SafetensorsError(ValueError):
    """A file that is not what the safetensors format says it must be."""


@dataclass(frozen=True)
class Spec:
    """What a header says about one tensor; `start` and `stop` are bytes after the header."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int = 0
    stop: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class File:
    """One open file. Nothing is read but the header until a tensor is asked for.

    Attributes:
        path: the file.
        header: the header's bytes, the leading size included, as they are on disk.
        metadata: the header's `__metadata__`, or None if it has none.
        specs: name -> Spec in the order of the bytes.

    Raises:
        SafetensorsError: naming the file, the tensor and the offset.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        size = self.path.stat().st_size
        with open(self.path, "rb") as f:
            self.header = _read_header(f, self.path, size)
            self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        self.metadata, self.specs = _parse(self.header, self.path, size - len(self.header))

    def __getitem__(self, name: str) -> np.ndarray:
        """A read-only view of a tensor's bytes in the map; slices read only what they cover."""
        spec = self.specs[name]
        count = math.prod(spec.shape)
        offset = len(self.header) + spec.start
        return np.frombuffer(self._map, spec.dtype, count, offset).reshape(spec.shape)

    def release(self, name: str) -> None:
        """Lets the system drop the pages of a tensor from this process; they stay in its cache."""
        spec = self.specs[name]
        first = (len(self.header) + spec.start) // mmap.PAGESIZE * mmap.PAGESIZE
        length = len(self.header) + spec.stop - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, length)


def layout(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """Orders tensors as the reference library does and gives them their offsets."""
    ordered, start = [], 0
    for spec in sorted(specs, key=lambda s: (-_RANK[s.dtype], s.name)):
        ordered.append(Spec(spec.name, spec.dtype, spec.shape, start, start + spec.nbytes))
        start += spec.nbytes
    return tuple(ordered)


def header(specs: Iterable[Spec], metadata: Mapping[str, str] | None) -> bytes:
    """The header's bytes, size included, for tensors that already have their offsets."""
    entries: dict[str, object] = {}
    if metadata is not None:
        entries["__metadata__"] = dict(metadata)
    for s in specs:
        if s.dtype not in NAMES:
            raise ValueError(f"tensor {s.name} is {s.dtype}, which safetensors cannot hold")
        offsets = [s.start, s.stop]
        entries[s.name] = {
            "dtype": NAMES[s.dtype],
            "shape": list(s.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(
    path: str | os.PathLike,
    specs: Iterable[Spec],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
    header_bytes: bytes | None = None,
) -> None:
    """Writes a file under a temporary name in the same folder, then renames it.

    A large one goes to the disk while more of it is made.

    Args:
        path: the file to make or to replace.
        specs: tensors in the order of their bytes, as `layout` or a `File` gives them.
        arrays: their values in the same order, consumed one at a time.
        metadata: the header's `__metadata__`.
        header_bytes: a header to write as it is, instead of a new one.

    Raises:
        ValueError: if an array is not what its spec says.
        OSError: if the disk is full; what was at `path` before is still there.
    """
    specs = tuple(specs)

    def body(f):
        f.write(header(specs, metadata) if header_bytes is None else header_bytes)
        with ThreadPoolExecutor(1) as pool:
            syncs, since = [], 0
            for spec, array in zip(specs, arrays, strict=True):
                if array.shape != spec.shape or array.dtype != spec.dtype:
                    raise ValueError(
                        f"{spec.name} is {array.dtype}{list(array.shape)}, "
                        f"announced as {spec.dtype}{list(spec.shape)}"
                    )
                f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                since += spec.nbytes
                if since >= SYNCED and all(sync.done() for sync in syncs):
                    syncs.append(pool.submit(os.fsync, f.fileno()))
                    since = 0
            for sync in syncs:
                sync.result()  # what failed is told once, and not again at the end

    write_atomically(path, body)


def write_atomically(path: str | os.PathLike, body: Callable) -> None:
    """Calls `body(file)` on a temporary sibling of `path`, syncs it to disk and renames it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as f:
            body(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _read_header(f, path: Path, size: int) -> bytes:
    head = f.read(8)
    if len(head) < 8:
        raise SafetensorsError(
            f"{path} has {size} bytes, too few for a safetensors file; fetch it again"
        )
    if head == b"version ":
        raise SafetensorsError(f"{path} is a pointer of Git LFS: fetch the file itself")
    length = int.from_bytes(head, "little")
    if length > MAX_HEADER_BYTES:
        raise SafetensorsError(
            f"{path} is not a safetensors file: its first 8 bytes announce a header of {length} "
            f"bytes, more than the {MAX_HEADER_BYTES} allowed"
        )
    if 8 + length > size:
        raise SafetensorsError(
            f"{path} is truncated: its header ends at byte {8 + length}, the file at byte {size}; "
            "fetch it again"
        )
    text = f.read(length)
    if not text.startswith(b"{"):
        raise SafetensorsError(f"{path} is not a safetensors file: byte 8 is not '{{'")
    return head + text


def _parse(head: bytes, path: Path, body: int) -> tuple[dict[str, str] | None, dict[str, Spec]]:
    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = {name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1}
            raise SafetensorsError(f"{path} names {', '.join(sorted(twice))} twice in its header")
        return found

    try:
        entries = json.loads(head[8:], object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise SafetensorsError(f"{path} has a header that is not JSON: {e}") from e
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    ):
        raise SafetensorsError(f"{path} has __metadata__={metadata!r}; it must map text to text")
    specs = sorted(
        (_spec(name, entry, path) for name, entry in entries.items()),
        key=lambda s: (s.start, s.stop),
    )
    end = 0
    for s in specs:
        if s.start != end:
            what = "overlaps the tensor before it" if s.start < end else "leaves a gap before it"
            raise SafetensorsError(
                f"{path}: tensor {s.name} at offset {s.start} {what}, which ends at {end}"
            )
        if s.stop - s.start != s.nbytes:
            raise SafetensorsError(
                f"{path}: tensor {s.name} at offset {s.start} has {s.stop - s.start} bytes, but "
                f"{NAMES[s.dtype]}{list(s.shape)} needs {s.nbytes}"
            )
        if s.stop > body:
            raise SafetensorsError(
                f"{path} is truncated: tensor {s.name} needs bytes {s.start} to {s.stop} of the "
                f"data, which has {body}; fetch the file again"
            )
        end = s.stop
    if end != body:
        raise SafetensorsError(f"{path} has {body} bytes of data, but its tensors end at {end}")
    return metadata, {s.name: s for s in specs}


def _spec(name: str, entry: object, path: Path) -> Spec:
    def natural(values: object) -> bool:
        return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise SafetensorsError(
            f"{path}: tensor {name} is {entry!r}; it needs dtype, shape and data_offsets"
        )
    if entry["dtype"] not in DTYPES:
        raise SafetensorsError(
            f"{path}: tensor {name} has dtype {entry['dtype']!r}; known are {', '.join(DTYPES)}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not natural(shape) or not natural(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise SafetensorsError(f"{path}: tensor {name} has shape={shape}, data_offsets={offsets}")
    return Spec(name, DTYPES[entry["dtype"]], tuple(shape), *offsets)
