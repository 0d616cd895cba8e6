"""`save_hf`: a Config and parameters as a Hugging Face folder, exactly as it was read where it was.

Parameters spread over several processes are gathered tensor by tensor; each process writes its
share of the files, into a folder that all of them see.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from zoo import hosts
from zoo.config import Config
from zoo.hf import sidecars, stored, strided
from zoo.hf.destination import check_destination, check_space, taking_place
from zoo.hf.layout import shapes
from zoo.hf.load import flatten, float_type
from zoo.hf.quantization import FLOATS
from zoo.hf.safetensors import File, Spec, layout, write, write_atomically
from zoo.hf.source import INDEX, WEIGHTS, Source, json_bytes, some
from zoo.hf.table import Tensor, expand
from zoo.lora import Sum
from zoo.models import storage
from zoo.models.family import Storage
from zoo.quantized import Quantized, is_quantized

T = TypeVar("T")
SHARD_BYTES = 5_000_000_000
PIECE = 1 << 21  # bytes that a thread copies at a time


@dataclass(frozen=True)
class Shard:
    """One file to be written."""

    name: str
    specs: tuple[Spec, ...]
    metadata: Mapping[str, str] | None


def save_hf(
    out_dir: str | os.PathLike,
    config: Config,
    params: dict,
    source: Source | None = None,
    tokenizer: str | os.PathLike | None = None,
    dtype: Any = None,
    generation: Mapping | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers loads.

    Args:
        out_dir: the folder to make, or an empty one to fill. An older checkpoint there is
            replaced, unless it is the current directory; all else is an error.
        config: the architecture that `params` belong to.
        params: as `load` or `Decoder(config).init` returns them, or `zoo.lora.sums`.
        source: the checkpoint that they came from. Its extras, dtypes, shards, tokenizer and
            other files are written as they were; of its config.json only what `config` changes.
        tokenizer: a folder, or a tokenizer.json, whose tokenizer files are copied in.
        dtype: what to cast to; by default the source's types, or the parameters' own. Selection
            biases stay as they are, and quantised parameters cannot be cast.
        generation: what generation_config.json shall say; its token ids also go to config.json.
        max_shard_bytes: the size at which a checkpoint without a source is split.

    Raises:
        ValueError: before anything is written, if the parameters are not those of `config`, the
            family cannot express it, or `out_dir` holds something else than a checkpoint.
        OSError: if the disk is full; it says how much is needed, and what was there still is.
    """
    out = check_destination(out_dir)
    dtype = None if dtype is None else float_type(dtype)
    flat = flatten(params.get("params", params))
    hf, names, there = None, None, None
    if source is not None:
        hf, names, there = source.config, stored.names(source), stored.shapes(source)
    held = storage(config, hf)
    tensors = expand(config, held.table, names, there)
    _check_params(config, flat)
    tensors = _without_zeros(tensors, held, flat, names)
    found = {} if source is None else stored.plan(source, tensors)
    if is_quantized(flat):
        if source is None or dtype is not None:
            raise ValueError(
                "params are quantised, which only their source can be saved as: pass it, and no "
                "dtype; for floats, load with a dtype first"
            )
        stored.check_kept(tensors, flat, found)
        tensors, _ = stored.keep(source, tensors, found, shapes(config))
        flat = stored.apart(flat)
    elif found:
        kind = dtype or _common(tensors[next(iter(found))], flat)
        source = stored.dequantised(source, found, kind)
    tensors |= _repeated(tensors, held, source)
    dtypes = _dtypes(tensors, flat, source, dtype)
    files = sidecars.files(config, source, tokenizer, generation, dtypes, dtype)
    shards = _shards(tensors, dtypes, source, max_shard_bytes)
    if len(shards) > 1 or shards[0].name != WEIGHTS:
        files[INDEX] = _index(shards, source)
    need = sum(s.nbytes for shard in shards for s in shard.specs)
    need += sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in files.values())
    check_space(out, need)

    values = _Values(tensors, flat, source)
    with taking_place(out, need) as temporary:
        for i, shard in enumerate(shards):
            _write_shard(temporary, shard, values, source, hosts.is_turn(i))
        hosts.meet(f"{out.name}: tensors")
        for name, content in files.items() if hosts.is_first() else ():
            data = content if isinstance(content, bytes) else content.read_bytes()
            (temporary / name).parent.mkdir(exist_ok=True)
            write_atomically(temporary / name, lambda f, data=data: f.write(data))


def _write_shard(
    folder: Path, shard: Shard, values: _Values, source: Source | None, mine: bool
) -> None:
    """Writes one file; where it is another process's, only takes part in gathering its tensors."""
    arrays, same = values.arrays(shard.specs), _same_file(shard, source)
    if mine:
        header = same.header if same else None
        write(folder / shard.name, shard.specs, arrays, shard.metadata, header)
    else:
        collections.deque(arrays, maxlen=0)


class _Values:
    """The bytes of tensors on disk, gathered from parameters one tensor at a time."""

    def __init__(self, tensors: dict[str, Tensor], flat: dict[str, Any], source: Source | None):
        self.tensors, self.flat, self.source = tensors, flat, source
        self.rows: dict[str, tuple[tuple[int, ...], np.ndarray]] = {}

    def arrays(self, specs: tuple[Spec, ...]) -> Iterator[np.ndarray]:
        """Each tensor in turn, in one of two buffers: while one is written, the next is filled."""
        sizes = [max((s.nbytes for s in specs[k::2]), default=0) for k in range(2)]
        buffers = [strided.empty((size,), np.dtype(np.uint8)) for size in sizes]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            filling = (self._fill(s, buffers[i % 2], pool) for i, s in enumerate(specs))
            for spec, (array, copies) in zip(specs, _one_ahead(filling), strict=True):
                for copy in copies:
                    copy.result()
                yield array
                if spec.name not in self.tensors:
                    self.source.places[spec.name].release(spec.name)

    def _fill(
        self, spec: Spec, buffer: np.ndarray, pool: Executor
    ) -> tuple[np.ndarray, list[Future]]:
        """A tensor, and what has to be done before it is one."""
        tensor = self.tensors.get(spec.name)
        if tensor is None:
            return self.source[spec.name], []
        out = buffer[: spec.nbytes].view(spec.dtype).reshape(spec.shape)
        pairs = (
            pair
            for view, part in zip(tensor.views(out), tensor.parts, strict=True)
            for pair in strided.pieces(view, self._part(part.path, part.at), PIECE)
        )
        return out, [pool.submit(strided.copy, *pair) for pair in pairs]

    def _part(self, path: str, at: tuple[int, ...]) -> np.ndarray:
        """A part of a parameter on the host; one row of each parameter is kept for its experts."""
        value = self.flat[path]
        if isinstance(value, np.ndarray) or _on_cpu(value):
            return np.asarray(value)[at]
        row = at[:1]
        if path not in self.rows or self.rows[path][0] != row:
            part = value[row] if row or isinstance(value, Sum) else value
            self.rows[path] = (row, hosts.gathered(part))
        return self.rows[path][1][at[1:]]


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same, each once the one after it is there."""
    items = iter(items)
    for first in items:
        for item in items:
            yield first
            first = item
        yield first


def _on_cpu(value: jax.Array | Sum) -> bool:
    if isinstance(value, Sum):
        return False
    return len(value.devices()) == 1 and next(iter(value.devices())).platform == "cpu"


def _check_params(config: Config, flat: dict[str, Any]) -> None:
    wanted = shapes(config)
    if missing := sorted(wanted.keys() - flat.keys()):
        raise ValueError(f"params lack {some(missing)}, which the config asks for")
    if unknown := sorted(flat.keys() - wanted.keys()):
        raise ValueError(f"params have {some(unknown)}, which the config does not know")
    for path, shape in wanted.items():
        if tuple(flat[path].shape) != shape:
            raise ValueError(
                f"params: {path} has shape {list(flat[path].shape)}, the config asks for "
                f"{list(shape)}"
            )
        quantised = isinstance(flat[path], Quantized)
        if not quantised and np.dtype(flat[path].dtype) not in FLOATS:
            raise ValueError(
                f"params: {path} is {flat[path].dtype}; a checkpoint holds bfloat16, float16 or "
                "float32: cast it first"
            )


def _without_zeros(
    tensors: dict[str, Tensor], held: Storage, flat: dict[str, Any], names: Collection[str] | None
) -> dict[str, Tensor]:
    """Without tensors that the source leaves out because they are zeros, if they still are."""
    absent = set() if names is None else held.unwritten(tensors, names)
    paths = {part.path for name in absent for part in tensors[name].parts}
    if any(bool((flat[path] != 0).any()) for path in paths):
        return tensors
    return {name: t for name, t in tensors.items() if name not in absent}


def _repeated(
    tensors: dict[str, Tensor], held: Storage, source: Source | None
) -> dict[str, Tensor]:
    """Tensors that the source has twice, tied embeddings for one; they follow their twin."""
    if source is None:
        return {}
    pairs = {n: twin for n, twin in (*held.tied.items(), *held.copies.items()) if n not in tensors}
    again = {n: twin for n, twin in pairs.items() if n in source.specs and source.same(n, twin)}
    return {n: replace(tensors[twin], name=n) for n, twin in again.items()}


def _dtypes(tensors, flat, source: Source | None, dtype: Any) -> dict[str, np.dtype]:
    found = {}
    for name, tensor in tensors.items():
        own = common = _common(tensor, flat)
        if source is not None and name in source.specs:
            own = source.specs[name].dtype
        own = own if own in FLOATS else common  # what was dequantised stays so
        keep = dtype is None or any(p.path.endswith("moe/bias/b") for p in tensor.parts)
        found[name] = own if keep else dtype
    return found


def _common(tensor: Tensor, flat: dict[str, Any]) -> np.dtype:
    kinds = {np.dtype(flat[p.path].dtype) for p in tensor.parts}
    return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def _shards(tensors, dtypes, source: Source | None, max_shard_bytes: int) -> list[Shard]:
    """The source's files if it has the same tensors, else as few as fit."""
    specs = {name: Spec(name, dtypes[name], t.shape) for name, t in tensors.items()}
    if source is not None:
        specs |= {name: source.specs[name] for name in source.extras if name not in specs}
        if specs.keys() == source.specs.keys():
            return [_like(file, specs) for file in source.files]
    groups: list[list[Spec]] = [[]]
    room = max_shard_bytes
    for spec in specs.values():
        if spec.nbytes > room and groups[-1]:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(spec)
        room -= spec.nbytes
    n = len(groups)
    names = [WEIGHTS] if n == 1 else [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    return [Shard(a, layout(g), {"format": "pt"}) for a, g in zip(names, groups, strict=True)]


def _like(file: File, specs: dict[str, Spec]) -> Shard:
    same = all(
        (s.dtype, s.shape) == (specs[n].dtype, specs[n].shape) for n, s in file.specs.items()
    )
    held = tuple(file.specs.values()) if same else layout(specs[n] for n in file.specs)
    return Shard(file.path.name, held, file.metadata)


def _same_file(shard: Shard, source: Source | None) -> File | None:
    """The source's file whose header describes exactly this shard."""
    for file in source.files if source is not None else ():
        if file.path.name == shard.name and tuple(file.specs.values()) == shard.specs:
            return file
    return None


def _index(shards: list[Shard], source: Source | None) -> bytes:
    kept = source is not None and source.index_bytes is not None
    if kept and all(_same_file(shard, source) for shard in shards):
        return source.index_bytes
    specs = [(s, shard.name) for shard in shards for s in shard.specs]
    metadata = {
        "total_parameters": sum(int(np.prod(s.shape)) for s, _ in specs),
        "total_size": sum(s.nbytes for s, _ in specs),
    }
    weight_map = {s.name: name for s, name in specs}
    return json_bytes({"metadata": metadata, "weight_map": weight_map})
