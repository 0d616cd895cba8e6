"""The file format: what we write is what the reference library writes; what is broken is named."""

from __future__ import annotations

import errno
import json
import os

import ml_dtypes
import numpy as np
import pytest

from tests.waiting import until
from zoo.hf import safetensors
from zoo.hf.safetensors import DTYPES, File, SafetensorsError, Spec, layout, write


def raw(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, shape: list[int], dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


BROKEN = {
    "empty": (b"", "too few"),
    "short": (b"\0\0\0", "too few"),
    "text": (b"<html>not found</html>", "not a safetensors file"),
    "huge header": (raw(b"{}", size=10**12), "1000000000000"),
    "header cut": (raw(b"{}", size=64), "truncated"),
    "not an object": (raw(b"[1]"), "byte 8"),
    "not JSON": (raw(b'{"a": '), "not JSON"),
    "data cut": (raw({"a": entry(0, 8, [8])}, b"1234"), "tensor a needs bytes 0 to 8"),
    "data left over": (raw({"a": entry(0, 2, [2])}, b"1234"), "end at 2"),
    "gap": (raw({"a": entry(0, 1, [1]), "b": entry(2, 3, [1])}, b"123"), "tensor b at offset 2"),
    "overlap": (raw({"a": entry(0, 2, [2]), "b": entry(1, 3, [2])}, b"123"), "overlaps"),
    "wrong size": (raw({"a": entry(0, 3, [1], "F32")}, b"123"), r"F32\[1\] needs 4"),
    "backwards": (raw({"a": entry(3, 0, [3])}, b"123"), r"data_offsets=\[3, 0\]"),
    "negative": (raw({"a": entry(0, 1, [-1])}, b"1"), r"shape=\[-1\]"),
    "dtype": (raw({"a": entry(0, 1, [1], "F4")}, b"1"), "dtype 'F4'"),
    "fields": (raw({"a": {"dtype": "U8"}}), "needs dtype, shape and data_offsets"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "twice": (
        raw(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8"}}'),
        "a twice",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_by_name(tmp_path, kind):
    content, message = BROKEN[kind]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorsError, match=message) as error:
        File(path)
    assert str(path) in str(error.value)


def test_every_dtype_survives(tmp_path, rng):
    arrays = {
        name: rng.integers(0, 2 if name == "BOOL" else 100, (3, 5)).astype(dtype)
        for name, dtype in DTYPES.items()
    }
    specs = layout(Spec(name, a.dtype, a.shape) for name, a in arrays.items())
    write(tmp_path / "a.safetensors", specs, (arrays[s.name] for s in specs), {"format": "pt"})
    file = File(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt"}
    for name, array in arrays.items():
        assert file[name].dtype == array.dtype
        np.testing.assert_array_equal(file[name].view("u1"), array.view("u1"))


def test_bytes_of_the_reference_library(tmp_path):
    """Wide types first, then by name; padded to eight bytes. Written out by hand."""
    arrays = {
        "b": np.arange(2, dtype=np.float32),
        "a": np.arange(3, dtype=ml_dtypes.bfloat16),
        "é": np.zeros((0, 4), np.float32),
        "c": np.float16(1.5).reshape(()),
    }
    specs = layout(Spec(n, a.dtype, a.shape) for n, a in arrays.items())
    write(tmp_path / "a.safetensors", specs, (arrays[s.name] for s in specs), {"format": "pt"})
    text = (
        '{"__metadata__":{"format":"pt"},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"é":{"dtype":"F32","shape":[0,4],"data_offsets":[8,8]},'
        '"a":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},'
        '"c":{"dtype":"F16","shape":[],"data_offsets":[14,16]}}'
    ).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(arrays[n].tobytes() for n in ("b", "é", "a", "c"))
    assert (tmp_path / "a.safetensors").read_bytes() == raw(text, data)


def test_slices_are_views_of_the_map(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    specs = layout([Spec("a", array.dtype, array.shape)])
    write(tmp_path / "a.safetensors", specs, [array])
    file = File(tmp_path / "a.safetensors")
    assert np.shares_memory(file["a"][1:], file["a"])
    assert not file["a"].flags.writeable
    file.release("a")
    np.testing.assert_array_equal(file["a"], array)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    array = np.arange(4, dtype=np.int32)
    specs = layout([Spec("a", array.dtype, array.shape), Spec("b", array.dtype, array.shape)])
    write(path, specs, [array, array])
    before = path.read_bytes()

    def values():
        yield array + 1
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(path, specs, values())
    with pytest.raises(ValueError, match="b is int64"):
        write(path, specs, [array, array.astype(np.int64)])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_header_limit_is_the_reference_librarys():
    assert safetensors.MAX_HEADER_BYTES == 100_000_000


def test_the_disk_works_while_a_file_is_made_and_its_errors_are_told(tmp_path, monkeypatch):
    """Linux tells an error once: at the sync that met it, and not at the last one again."""
    monkeypatch.setattr(safetensors, "SYNCED", 1)
    arrays = [np.full((4, 4), i, np.float32) for i in range(3)]
    specs = layout(Spec(f"x{i}", np.dtype(np.float32), (4, 4)) for i in range(3))
    synced = []

    def until_synced():
        yield arrays[0]
        until(lambda: len(synced), lambda count: count == 1)
        yield from arrays[1:]

    monkeypatch.setattr(os, "fsync", synced.append)
    write(tmp_path / "a", specs, until_synced())
    assert len(synced) > 1
    assert [File(tmp_path / "a")[s.name][0, 0] for s in specs] == [0, 1, 2]

    def failing(descriptor):
        synced.append(descriptor)
        if len(synced) == 1:
            raise OSError(errno.ENOSPC, "no space")

    synced.clear()
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "b", specs, until_synced())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
