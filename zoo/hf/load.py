"""`load`: a Hugging Face folder as a Config, parameters, a tokenizer and its Source.

Every parameter is one buffer, filled layer by layer from the mapped files and handed to JAX without
a further copy; with a mesh, every device's part is filled alone and only the rows that it needs are
read. Peak memory is the parameters of this host plus the pages of the tensors being read, and one
tensor in full where quantised ones are dequantised.
"""

from __future__ import annotations

import functools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zoo.config import Config
from zoo.hf import stored, strided
from zoo.hf.hub import resolve
from zoo.hf.layout import shapes
from zoo.hf.quantization import FLOATS, Stored
from zoo.hf.safetensors import NAMES
from zoo.hf.source import Source, open_source, some
from zoo.hf.table import Tensor, expand
from zoo.hf.tokenizer import find_tokenizer
from zoo.models import config_from_hf, storage
from zoo.quantized import Quantized
from zoo.rounding import Method, Place, encode, method, place

if TYPE_CHECKING:
    import tokenizers

    from zoo.hf.chat import Chat

FP32_PARAMS = ("moe/bias/b",)  # float32 whatever the file or the caller says

Piece = tuple[Tensor, int]  # a tensor on disk and which of its parts is meant


@dataclass(frozen=True)
class Checkpoint:
    """What `load` returns; `params` is what `Decoder(config).apply` takes."""

    config: Config
    params: dict
    tokenizer: tokenizers.Tokenizer | None
    source: Source

    @functools.cached_property
    def chat(self) -> Chat:
        """The folder's chat template, as `zoo.hf.chat.open_chat` reads it."""
        from zoo.hf.chat import open_chat

        return open_chat(self.source.folder, self.tokenizer)


def load(
    path_or_repo: str | os.PathLike,
    mesh: jax.sharding.Mesh | None = None,
    rules: Any = None,
    dtype: Any = None,
    quantize: str | Method | None = None,
) -> Checkpoint:
    """Loads a checkpoint.

    Args:
        path_or_repo: a folder, or a repo id of the Hub (needs the extra `hf`).
        mesh: lays the parameters over these devices; by default they go to the first device.
        rules: a table of `zoo.sharding.RULES` by name, one of yours, or None for the default.
        dtype: what to cast to, and to dequantise to; by default each parameter is as it is stored,
            and quantised ones are `zoo.quantized.Quantized`. Selection biases stay float32.
        quantize: "int8", "int4", "fp8" or a `zoo.rounding.Method`: what linear maps are rounded to,
            one matrix at a time, so that they are never there in full.

    Raises:
        ValueError: before any tensor is read, if the folder, its config or its tensors are not
            what this family says they must be; it names file, tensor or key.
    """
    dtype = None if dtype is None else float_type(dtype)
    how = None if quantize is None else method(quantize)
    source, cfg, tensors, quantised = read(resolve(path_or_repo))
    if how is not None and quantised and dtype is None:
        raise ValueError(
            f"{source.folder} is quantised as it is: load it without quantize, or give a dtype to "
            "round again"
        )
    kept, quantised = (quantised, {}) if dtype is None else ({}, quantised)
    tensors, wanted = stored.keep(source, tensors, kept, shapes(cfg))
    tokenizer = find_tokenizer(source.folder)
    pieces = defaultdict(list)
    for tensor in tensors.values():
        for k, part in enumerate(tensor.parts):
            pieces[part.path].append((tensor, k))
    placed = {} if mesh is None else flatten(_shardings(cfg, mesh, rules))
    placed = stored.place(kept, placed, wanted)
    flat = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, shape in wanted.items():
            kind = _param_dtype(path, pieces[path], source, dtype)
            fill = _Fill(source, pieces[path], shape, kind, pool, quantised)
            if how is not None and (where := place(path, shape)) is not None:
                flat[path] = _quantized(fill, where, how, placed.get(path))
            elif mesh is None:
                flat[path] = jax.device_put(fill((slice(None),) * len(shape)))
            else:
                flat[path] = jax.make_array_from_callback(shape, placed[path], fill)
    params = {"params": unflatten(stored.assemble(flat, kept))}
    return Checkpoint(cfg, params, tokenizer, source)


def read(folder: str | os.PathLike) -> tuple[Source, Config, dict[str, Tensor], stored.Plan]:
    """A folder's Source, its Config, the tensors that hold parameters, and the quantised of them.

    None is read yet.

    Raises:
        ValueError: as `load`.
    """
    source = open_source(folder)
    cfg = config_from_hf(source.config)
    names, held = stored.names(source), storage(cfg, source.config)
    tensors = expand(cfg, held.table, names, stored.shapes(source))
    absent = held.unwritten(tensors, names)
    tensors = {name: t for name, t in tensors.items() if name not in absent}
    if cfg.mtp and not any(_predicts(t) for t in tensors.values() if t.name in names):
        cfg = replace(cfg, mtp=())  # transformers drops these layers and leaves their number
        tensors = {name: t for name, t in tensors.items() if not _predicts(t)}
    quantised = stored.plan(source, tensors)
    return _check(source, cfg, tensors, quantised), cfg, tensors, quantised


def _predicts(tensor: Tensor) -> bool:
    """Whether it belongs to a layer of multi-token prediction."""
    return tensor.parts[0].path.startswith("mtp_")


def _check(
    source: Source, cfg: Config, tensors: dict[str, Tensor], quantised: stored.Plan
) -> Source:
    """The source with its extras named; tensors that are quantised have been checked before.

    Raises:
        ValueError: naming tensors that are missing, unknown, or of the wrong shape or type.
    """
    specs, floats = source.specs, {n: t for n, t in tensors.items() if n not in quantised}
    if missing := sorted(floats.keys() - specs.keys()):
        raise ValueError(
            f"{source.folder} lacks {some(missing)}; fetch it again, or "
            "fix the config that asks for them"
        )
    for name, tensor in floats.items():
        file, spec = source.places[name].path, specs[name]
        if spec.shape != tensor.shape:
            raise ValueError(
                f"{file}: {name} has shape {list(spec.shape)}, its config asks for "
                f"{list(tensor.shape)}; fix the config, or fetch the file again"
            )
        if spec.dtype not in FLOATS:
            raise ValueError(
                f"{file}: {name} is {NAMES[spec.dtype]}; parameters must be BF16, F16 or F32, "
                "unless config.json has a quantization_config that says how it is quantised"
            )
    used = {piece.name for s in quantised.values() for _, piece in stored.fields(s)}
    carried = {name for s in quantised.values() for name in s.carried}
    extras = sorted(specs.keys() - floats.keys() - used)
    layers, held = str(len(cfg.layers)), storage(cfg, source.config)
    allowed = [p.replace("{layers}", layers) for p in held.extras]
    for name in extras:
        if cfg.tie_embeddings and name in held.tied:
            _check_tied(source, name, held.tied[name])
        elif name not in carried and not any(re.fullmatch(pattern, name) for pattern in allowed):
            raise ValueError(
                f"{source.folder} has a tensor that {cfg.family} does not know: {name}; "
                "remove it, or fix the config that hides where it belongs"
            )
    return replace(source, extras=tuple(extras))


class _Fill:
    """Called with an index of a parameter, returns that part of it from the mapped files."""

    def __init__(self, source: Source, pieces: list[Piece], shape, dtype, pool, quantised):
        self.source, self.pieces, self.shape, self.dtype = source, pieces, shape, dtype
        self.pool, self.quantised = pool, quantised
        self.done: dict[tuple, np.ndarray] = {}

    def matrix(self, index: tuple[int, ...]) -> np.ndarray:
        """One matrix of a stacked parameter, which is not kept."""
        bounds = tuple((i, i + 1) for i in index)
        rest = tuple((0, n) for n in self.shape[len(index) :])
        return self._read(bounds + rest)[(0,) * len(index)]

    def __call__(self, index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True))
        if bounds not in self.done:
            self.done[bounds] = self._read(bounds)
        return self.done[bounds]

    def _read(self, bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        shape = tuple(stop - start for start, stop in bounds)
        out = strided.empty(shape, self.dtype, self.pool)
        if not self.pieces:  # a folder leaves out what is zero
            out[...] = 0
        copies = []
        for tensor, k in self.pieces:
            at = tensor.parts[k].at
            lead, rest = bounds[: len(at)], bounds[len(at) :]
            if all(start <= i < stop for i, (start, stop) in zip(at, lead, strict=True)):
                target = out[tuple(i - start for i, (start, _) in zip(at, lead, strict=True))]
                part = tuple(slice(start, stop) for start, stop in rest)
                if tensor.name in self.quantised:
                    disk = self._dequantised(self.quantised[tensor.name])
                    self._wait(strided.copy, strided.pieces(target, tensor.views(disk)[k][part]))
                    continue
                view = tensor.views(self.source[tensor.name])[k][part]
                for pair in strided.pieces(target, view):
                    copies.append(self.pool.submit(self._copy, tensor.name, *pair))
        for copy in copies:
            copy.result()
        return out

    def _copy(self, name: str, target: np.ndarray, view: np.ndarray) -> None:
        strided.copy(target, view)
        self.source.places[name].release(name)

    @functools.cached_property
    def _disk(self) -> np.ndarray:
        """Room for any one tensor of this parameter: all have one shape."""
        return strided.empty(self.pieces[0][0].shape, self.dtype)

    def _dequantised(self, held: Stored) -> np.ndarray:
        """A whole tensor, in a buffer that the next one overwrites."""
        self._wait(stored.dequantize, stored.chunks(held, self.source, self._disk))
        for _, piece in stored.fields(held):
            self.source.places[piece.name].release(piece.name)
        return self._disk

    def _wait(self, task: Callable, arguments: Iterable[tuple]) -> None:
        for done in [self.pool.submit(task, *each) for each in arguments]:
            done.result()


def _quantized(fill: _Fill, where: Place, how: Method, sharding: NamedSharding | None) -> Quantized:
    """A parameter, rounded while it is read; a mesh cuts it along layers, experts and outputs."""
    if sharding is None:
        return encode(fill.matrix, where, how, jax.device_put, strided.empty)

    def put(array: np.ndarray) -> jax.Array:
        return jax.device_put(array, codes_sharding(sharding, where, array.shape[-2]))

    return encode(fill.matrix, where, how, put, strided.empty)


def codes_sharding(sharding: NamedSharding, where: Place, rows: int) -> NamedSharding:
    """Where codes or scales [..., rows, _] of a rounded parameter lie.

    Args:
        sharding: of the parameter as floats.
        where: its matrices.
        rows: outputs, or blocks of them.
    """
    mesh, spec = sharding.mesh, sharding.spec
    spec = (*spec, *(None,) * (len(where.lead) + len(where.shape) - len(spec)))
    lead, outputs = spec[: len(where.lead)], spec[len(where.lead) + where.inputs]
    return NamedSharding(mesh, PartitionSpec(*lead, stored.dividing(mesh, outputs, rows), None))


def _param_dtype(
    path: str, pieces: list[Piece], source: Source, dtype: np.dtype | None
) -> np.dtype:
    if path.endswith(FP32_PARAMS):
        return np.dtype(np.float32)
    if dtype is not None:
        return dtype
    stored = {source.specs[tensor.name].dtype for tensor, _ in pieces}
    return stored.pop() if len(stored) == 1 else np.dtype(np.float32)


def float_type(dtype: Any) -> np.dtype:
    """A type that parameters can have, from anything that names one.

    Raises:
        ValueError: for other types.
    """
    if (found := jnp.dtype(dtype)) not in FLOATS:
        raise ValueError(f"dtype={found.name} is not one of {', '.join(t.name for t in FLOATS)}")
    return found


def _check_tied(source: Source, name: str, twin: str) -> None:
    if not source.same(name, twin):
        raise ValueError(
            f"{source.folder}: tie_word_embeddings is true, but {name} differs from {twin}; "
            "set tie_word_embeddings to false in config.json"
        )


def _shardings(cfg: Config, mesh: jax.sharding.Mesh, rules: Any) -> dict:
    from zoo.sharding import shardings

    return shardings(cfg, mesh, rules)["params"]


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, path + "/") if isinstance(value, dict) else {path: value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
