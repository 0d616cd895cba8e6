"""A model as StableHLO programs and arrays, for machines that have jax and not this package.

    out/
      manifest.json            sizes, order of weights, shapes of the cache, files of programs
      weights.safetensors      the arrays, by the names that the manifest lists
      prefill.cpu.stablehlo    `jax.export` programs, two for every platform
      decode.cpu.stablehlo
      tokenizer.json, ...      as they were beside the model

Both programs are one function, for pieces of text of two lengths:

    logits, cache = program(weights, cache, tokens, counts)

`weights` and `cache` are lists of arrays; `tokens` i32[B, T], of which the first `counts[b]` of row
b are read behind what its cache holds; `logits` f32[B, V] are for the token after the last of them.
An empty cache is all zeros. A row of count 0 stays as it is. There is one program per platform, and
not one for all, because kernels of one platform cannot be lowered beside those of another.

Axes: B batch, T tokens of a piece, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from zoo.cache import Cache
from zoo.decoder import Decoder
from zoo.hf import safetensors
from zoo.hf.load import Checkpoint
from zoo.hf.source import copy_texts
from zoo.inference import unstack
from zoo.rope import borders

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
TRITON = "__gpu$xla.gpu.triton"
"""The custom call of our GPU kernels, for which jax.export promises no compatibility."""


class Sizes(NamedTuple):
    """What a program is compiled for: rows, tokens of a text at most, tokens of a piece."""

    batch: int = 1
    length: int = 1024
    piece: int = 64


SIZES = Sizes()


def export(
    checkpoint: Checkpoint,
    out: str | os.PathLike,
    platforms: Sequence[str] = ("cpu",),
    sizes: Sizes = SIZES,
    dtype: Any = jnp.float32,
) -> Path:
    """Writes a folder as described above, whole or not at all.

    Args:
        checkpoint: of `zoo.load`; weights are written as they are held, quantised ones too.
        out: the folder to make.
        platforms: of `PLATFORMS`.
        sizes: batch, length and piece.
        dtype: of the computation and of the cache.

    Raises:
        ValueError: `out` exists, a platform is not known, or the model cannot have these sizes.
    """
    check(out, platforms)
    out, config = Path(out), dataclasses.replace(checkpoint.config, mtp=())
    _check_sizes(config, sizes)
    model = Decoder(config, dtype=jnp.dtype(dtype), unstacked=True)
    weights = _weights(model, checkpoint.params)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        copy_texts(checkpoint.source.folder, made)
        programs = {p: _write_programs(model, weights, p, sizes, made) for p in platforms}
        _write_weights(made / WEIGHTS, weights)
        manifest = _manifest(model, weights, checkpoint, programs, sizes)
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        made.chmod(0o755)
        made.rename(out)
    except BaseException:
        shutil.rmtree(made)
        raise
    return out


def check(out: str | os.PathLike, platforms: Sequence[str]) -> None:
    """Raises ValueError for what `export` will refuse, before a model is loaded."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError("jax.export writes with flatbuffers: pip install 'zoo-jax[export]'")
    if Path(out).exists():
        raise ValueError(f"{out} exists: name a folder to make")
    if unknown := [p for p in platforms if p not in PLATFORMS]:
        raise ValueError(f"platforms: {unknown[0]!r} is not one of {', '.join(PLATFORMS)}")
    if not platforms or len(set(platforms)) < len(platforms):
        raise ValueError(f"platforms={','.join(platforms)!r} must name each of them once")


def _check_sizes(config: Any, sizes: Sizes) -> None:
    if min(sizes) < 1:
        raise ValueError(f"{sizes} must all be at least 1")
    longest = min((config.max_length, *borders(config.ropes)))
    if sizes.length > longest:
        raise ValueError(
            f"length={sizes.length} passes the {longest} tokens up to which this model reads "
            "a text in one way: name a smaller one"
        )


def _weights(model: Decoder, params: dict) -> dict:
    """The parameters that decoding reads, per layer; on CPU they are views."""
    used = {name: part for name, part in params["params"].items() if not name.startswith("mtp_")}
    return unstack.unstack(model.cfg, {"params": used})


def _slots(sizes: Sizes) -> int:
    """Room behind the longest text for the padding of its last piece, which is written too."""
    return sizes.length + max(sizes.piece, 2)


def _empty_cache(model: Decoder, sizes: Sizes) -> Cache:
    return jax.eval_shape(lambda: unstack.init_cache(model, sizes.batch, _slots(sizes)))


def _write_programs(
    model: Decoder, weights: dict, platform: str, sizes: Sizes, folder: Path
) -> dict[str, str]:
    """Two files; their names by the name of the program."""
    leaves, tree = jax.tree.flatten(weights)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    cache, cache_tree = jax.tree.flatten(_empty_cache(model, sizes))
    program = _program(model, tree, cache_tree)
    unstable = [jax_export.DisabledSafetyCheck.custom_call(TRITON)]
    names = {}
    for name, piece in (("prefill", sizes.piece), ("decode", 1)):
        tokens = jax.ShapeDtypeStruct((sizes.batch, piece), jnp.int32)
        counts = jax.ShapeDtypeStruct((sizes.batch,), jnp.int32)
        with _target(platform):
            lower = jax_export.export(program, platforms=[platform], disabled_checks=unstable)
            names[name] = f"{name}.{platform}.stablehlo"
            text = lower(shapes, cache, tokens, counts).serialize()
        (folder / names[name]).write_bytes(text)
    return names


def _program(model: Decoder, tree: Any, cache_tree: Any) -> Any:
    """The function that a program is, on lists of arrays."""

    def read(weights, cache, tokens, counts):
        at, counted = jnp.arange(tokens.shape[1])[None], counts[:, None]
        cache = jax.tree.unflatten(cache_tree, cache)
        out = model.apply(
            params := jax.tree.unflatten(tree, weights),
            tokens,
            segment_ids=(at < counted).astype(jnp.int32),
            positions=cache.lengths[:, None] + jnp.clip(at, 0, jnp.maximum(counted - 1, 0)),
            cache=cache,
            method="hidden",
        )
        last = jnp.maximum(counted - 1, 0)[..., None]
        hidden = jnp.take_along_axis(out.hidden, last, axis=1)
        logits = model.apply(params, hidden, method="logits")[:, 0]
        return logits, jax.tree.leaves(out.cache)

    return jax.jit(read)


def _target(platform: str) -> contextlib.AbstractContextManager:
    """Newer JAX lowers GPU kernels for a device that has a name, if none is there."""
    if platform != "cuda" or jax.__version_info__ < (0, 11) or jax.default_backend() == "gpu":
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def _named(tree: Any) -> dict[str, Any]:
    """Leaves in the order of `jax.tree.leaves`, by the path to each."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


def _write_weights(path: Path, weights: dict) -> None:
    named = _named(weights["params"])
    specs = safetensors.layout(
        safetensors.Spec(name, np.dtype(leaf.dtype), leaf.shape) for name, leaf in named.items()
    )
    safetensors.write(path, specs, (np.asarray(named[spec.name]) for spec in specs))


def _manifest(
    model: Decoder, weights: dict, checkpoint: Checkpoint, programs: dict, sizes: Sizes
) -> dict:
    cache = jax.tree.leaves(_empty_cache(model, sizes))
    return {
        "family": model.cfg.family,
        "vocab_size": model.cfg.vocab_size,
        "eos": list(checkpoint.source.eos),
        **sizes._asdict(),
        "dtype": model.dtype.name,
        "jax": jax.__version__,
        "programs": programs,
        "weights": list(_named(weights["params"])),
        "cache": [{"shape": list(leaf.shape), "dtype": leaf.dtype.name} for leaf in cache],
    }
