"""Copies between strided views at memory speed: the work of loading and of saving.

Disk holds a matrix as [out, in], we hold it as [in, out], so most bytes are transposed on the way.
NumPy alone walks one side with a large stride and reaches 0.3 GB/s; tiles that stay in the cache
reach 2 GB/s per core.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from concurrent.futures import Executor

import numpy as np

TILE_ROWS = 512  # of the source
TILE_BYTES = 512  # along a row of the source; a tile of 256 KB stays in a second-level cache
_ALIGN = 64  # what XLA needs to take a host buffer without a copy
_LARGE = 1 << 22  # bytes from which NumPy asks for huge pages
_AT_ONCE = 1 << 25  # bytes of pages that a thread asks for
_POPULATE_WRITE = 23  # of madvise(2), since Linux 5.14


def empty(shape: tuple[int, ...], dtype: np.dtype, pool: Executor | None = None) -> np.ndarray:
    """An uninitialised array whose bytes start on a 64-byte boundary.

    Large ones ask for small pages. NumPy asks for huge pages, which virtual machines that report
    free memory to their host have to get back from it: 2.4 s per GB, measured, against 0.5 s. The
    threads of a pool get the pages ahead, which spares a fault for each (loading took 0.76 times
    the processor time).
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size >= _LARGE and hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # kernels built without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        array = np.frombuffer(pages, dtype).reshape(shape)
        if pool is not None:
            _populate(array, pool)
        return array
    raw = np.empty(size + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + size].view(dtype).reshape(shape)


def _populate(array: np.ndarray, pool: Executor) -> None:
    """Gets the pages of an array; where the system knows no way, they come when written to."""
    try:
        advise = ctypes.CDLL(None).madvise  # unlike that of `mmap`, it lets other threads run
    except (AttributeError, OSError):
        return
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    start, size = array.ctypes.data, array.nbytes
    parts = [(start + at, min(_AT_ONCE, size - at)) for at in range(0, size, _AT_ONCE)]
    list(pool.map(lambda part: advise(*part, _POPULATE_WRITE), parts))


def copy(dst: np.ndarray, src: np.ndarray) -> None:
    """`dst[...] = src` for any two views of one shape, cast to the type of `dst`."""
    if dst.shape != src.shape:
        raise ValueError(f"cannot copy {list(src.shape)} into {list(dst.shape)}")
    if dst.size == 0:
        return
    if dst.dtype == src.dtype:  # move bits: NumPy copies unknown float types one by one
        bits = np.dtype(f"u{dst.dtype.itemsize}") if dst.dtype.itemsize <= 8 else dst.dtype
        dst, src = dst.view(bits), src.view(bits)
    dst, src = _merge(dst, src)
    rows, columns = _fastest(dst), _fastest(src)
    if rows == columns:
        np.copyto(dst, src, casting="unsafe")
        return
    order = [a for a in range(dst.ndim) if a not in (rows, columns)] + [rows, columns]
    dst, src = dst.transpose(order), src.transpose(order)
    for index in np.ndindex(dst.shape[:-2]):
        _transpose(dst[index], src[index])


def pieces(dst: np.ndarray, src: np.ndarray, most: int = 1 << 25):
    """Splits a copy along its longest axis into pairs of at most about `most` bytes."""
    if dst.nbytes <= most:
        yield dst, src
        return
    axis = int(np.argmax(dst.shape))
    step = max(1, dst.shape[axis] * most // dst.nbytes)
    for start in range(0, dst.shape[axis], step):
        part = (slice(None),) * axis + (slice(start, start + step),)
        yield dst[part], src[part]


def _transpose(dst: np.ndarray, src: np.ndarray) -> None:
    """Copies [rows, columns]; columns are close together in `src` and rows in `dst`."""
    width = max(1, TILE_BYTES // src.itemsize)
    # The pad keeps a column of the tile from falling into one cache set at power-of-two strides.
    tile = np.empty((TILE_ROWS, width + 32), src.dtype)
    for r in range(0, src.shape[0], TILE_ROWS):
        for c in range(0, src.shape[1], width):
            block = src[r : r + TILE_ROWS, c : c + width]
            near = tile[: block.shape[0], : block.shape[1]]
            np.copyto(near, block)
            np.copyto(dst[r : r + TILE_ROWS, c : c + width].T, near.T, casting="unsafe")


def _fastest(a: np.ndarray) -> int:
    """The axis along which neighbours are closest; the last of equals."""
    return min(range(a.ndim), key=lambda i: (a.strides[i], -i)) if a.ndim else 0


def _merge(dst: np.ndarray, src: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops axes of length one and joins neighbours that are contiguous on both sides."""
    keep = tuple(0 if n == 1 else slice(None) for n in dst.shape)
    dst, src = dst[(*keep, ...)], src[(*keep, ...)]
    axis = 0
    while axis + 1 < dst.ndim:
        n, strides = (
            dst.shape[axis + 1],
            [(a.strides[axis], a.strides[axis + 1]) for a in (dst, src)],
        )
        if all(outer == n * inner for outer, inner in strides):
            shape = (*dst.shape[:axis], dst.shape[axis] * n, *dst.shape[axis + 2 :])
            dst, src = (_as_shape(a, shape, axis) for a in (dst, src))
        else:
            axis += 1
    return dst, src


def _as_shape(a: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    strides = a.strides[:axis] + a.strides[axis + 1 :]
    return np.lib.stride_tricks.as_strided(a, shape, strides, writeable=a.flags.writeable)
