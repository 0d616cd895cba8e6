"""The rules that lay logical axes onto named meshes (`zoo.mesh`).

Parameters, caches and activations carry logical axis names (`embed`, `heads`, `experts`, `batch`,
...). A rule table maps each to a mesh axis, to several, or to None; `shardings` turns that into one
`NamedSharding` per parameter, and within `use` models lay out their activations by it. Mesh axes:
data fsdp expert tensor context stage.

Tables are read as `zoo.axes` says.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from zoo.axes import Axes, Rules, as_tuple, partition_spec, unboxed
from zoo.cache import Cache, logical_axes_of
from zoo.config import Config
from zoo.decoder import Decoder
from zoo.mesh import ACROSS_SLICES, AXES, abstract_mesh, across_slices, make_mesh, mesh_sizes

__all__ = [
    "ACROSS_SLICES", "AXES", "DEFAULT", "LOGICAL_AXES", "RULES", "abstract_mesh", "across_slices",
    "activation_rules", "batch_sharding", "cache_shardings", "check_mesh", "find_rules", "init",
    "laid_out", "logical_axes", "make_mesh", "mesh_sizes", "parts_of", "shardings",
    "shardings_like", "use",
]  # fmt: skip

LOGICAL_AXES = (
    "vocab", "embed", "heads", "kv_heads", "groups", "head_dim", "mlp", "experts", "rank", "layers",
    "norm", "batch", "rows", "length", "act_embed", "act_heads", "act_mlp", "act_experts",
)  # fmt: skip

_FSDP: Rules = {"embed": "fsdp", "rank": "fsdp"}
_TENSOR: Rules = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
_EXPERT: Rules = {"experts": "expert"}
_CONTEXT: Rules = {"length": "context"}
_STAGE: Rules = {"layers": "stage"}

RULES: dict[str, Rules] = {
    "data": {"batch": "data"},
    "fsdp": {"batch": ("data", "fsdp"), **_FSDP},
    "tensor": {"batch": "data", **_TENSOR},
    "fsdp_tensor": {"batch": ("data", "fsdp"), **_FSDP, **_TENSOR},
    "expert": {"batch": ("data", "fsdp", "expert"), **_EXPERT, **_FSDP},
    "fsdp_tensor_expert": {
        "batch": ("data", "fsdp", "expert"), **_EXPERT, **_FSDP, **_TENSOR, **_CONTEXT, **_STAGE,
    },
}  # fmt: skip
"""Tables by name. Batches are cut over `data` and over the axes that cut parameters by other names
than those of a product's output: `fsdp` (arXiv:2304.11277, ZeRO-3) and `expert`; `tensor` cuts
heads, hidden units and vocabulary (arXiv:1909.08053); `context` cuts rows (`zoo.ring`),
`stage` the layers of a stack (`zoo.pipeline`)."""

DEFAULT = "fsdp_tensor_expert"
"""Uses whichever of these axes a mesh has; an axis of size 1 changes nothing."""


def find_rules(rules: str | Rules | None = None) -> Rules:
    """The table of a name, of `DEFAULT`, or the one given.

    Raises:
        ValueError: no table of that name, or a logical axis that does not exist.
    """
    if rules is None:
        rules = DEFAULT
    if isinstance(rules, str):
        if rules not in RULES:
            near = difflib.get_close_matches(rules, RULES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"rules={rules!r}: {hint}Tables are {', '.join(RULES)}")
        return RULES[rules]
    for name in rules:
        if name not in LOGICAL_AXES:
            raise ValueError(
                f"rules: unknown logical axis {name!r}; axes are {', '.join(LOGICAL_AXES)}"
            )
    return rules


@contextlib.contextmanager
def use(mesh: Mesh, rules: str | Rules | None = None) -> Iterator[None]:
    """Within it models lay out activations and caches over a mesh, and exchange tokens by experts.

    A program keeps the rules that it was traced under: change tables between programs, not between
    calls of one.

    Raises:
        ValueError: a rule for an axis that does not exist, or an axis of the mesh without a rule.
    """
    rules = find_rules(rules)
    check_mesh(mesh, rules)
    with jax.set_mesh(mesh), nn.logical_axis_rules(activation_rules(rules)):
        yield


def check_mesh(mesh: Mesh | AbstractMesh, rules: Rules) -> None:
    """Refuses rules for an axis that does not exist, and an axis of the mesh without a rule.

    Raises:
        ValueError: it names them.
    """
    _check_mesh_axes(rules, mesh)
    named = {axis for axes in rules.values() for axis in as_tuple(axes)}
    if idle := [f"{a}={n}" for a, n in mesh.shape.items() if n > 1 and a not in named]:
        raise ValueError(
            f"mesh axis {', '.join(idle)} is in no rule, so that its devices would all do the same "
            f"work: use a table that names it, or make it 1; the rules name {', '.join(named)}"
        )


def logical_axes(cfg: Config) -> dict:
    """A `PartitionSpec` of logical names per parameter, in the shape of `Decoder(cfg).init`."""
    return nn.get_partition_spec(_boxed_shapes(cfg))


def shardings(cfg: Config, mesh: Mesh | AbstractMesh, rules: str | Rules | None = None) -> dict:
    """A `NamedSharding` per parameter, in the shape of `Decoder(cfg).init`.

    Raises:
        ValueError: a rule for an axis that does not exist, or dimensions that their mesh axes do
            not divide; every one is named, with what would. A stack too short for the stages is
            whole on each of them, if another one is not.
    """
    rules = find_rules(rules)
    _check_mesh_axes(rules, mesh)
    uneven: dict[tuple, str] = {}
    stages = parts_of(mesh, rules.get("layers"))
    some_divides = any(stack.repeats % stages == 0 for stack in cfg.stacks)

    def place(path, logical: PartitionSpec, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = partition_spec(logical, rules)
        if "layers" in logical and some_divides and leaf.shape[0] % stages:
            spec = PartitionSpec(None, *spec[1:])  # as `zoo.pipeline.divides` decides
        for size, name, axes in zip(leaf.shape, logical, spec, strict=True):
            if size % parts_of(mesh, axes):
                uneven.setdefault((name, size, axes), _path(path))
        return NamedSharding(mesh, spec)

    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    shapes = unboxed(_boxed_shapes(cfg))
    placed = jax.tree_util.tree_map_with_path(place, logical_axes(cfg), shapes, is_leaf=is_spec)
    if uneven:
        lines = (_uneven(mesh, *what, where) for what, where in uneven.items())
        raise ValueError("rules do not fit the mesh:\n" + "\n".join(lines))
    return placed


def shardings_like(tree: Any, params: dict, placed: dict) -> Any:
    """Shardings of an optimizer's state: parts that mirror `params` lie as these, others whole.

    Args:
        tree: arrays or shapes, with subtrees in the structure of `params`.
        params: arrays or shapes.
        placed: the sharding of each of `params`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(placed)
    known = dict(zip((_keys(path) for path, _ in leaves), jax.tree.leaves(params), strict=True))
    where = {_keys(path): sharding for path, sharding in leaves}
    whole = NamedSharding(leaves[0][1].mesh, PartitionSpec())

    def place(path, leaf) -> NamedSharding:
        keys = _keys(path)
        same = keys in known and known[keys].shape == leaf.shape
        return where[keys] if same else whole

    return jax.tree_util.tree_map_with_path(place, tree)


def cache_shardings(cache: Cache, mesh: Mesh, rules: str | Rules | None = None) -> Cache:
    """A `NamedSharding` for every buffer of a cache: rows as batches, heads as those of keys."""
    rules = find_rules(rules)
    _check_mesh_axes(rules, mesh)

    def place(logical: tuple[str | None, ...], _) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(logical, rules))

    return jax.tree.map(place, logical_axes_of(cache), cache, is_leaf=_is_names)


def laid_out(shapes: Any, placed: Any) -> Any:
    """The shapes of a tree of arrays, with where each lies."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, placed
    )


def batch_sharding(mesh: Mesh, rules: str | Rules | None, rows: int) -> NamedSharding:
    """Where the arrays [B, T] of a batch of B = `rows` lie.

    Raises:
        ValueError: the rows do not divide over the mesh.
    """
    rules = find_rules(rules)
    _check_mesh_axes(rules, mesh)
    spec = partition_spec(("batch", "length"), rules)
    parts = parts_of(mesh, spec[0])
    if rows % parts:
        less = f"{rows - rows % parts} or " if rows > parts else ""
        raise ValueError(
            f"a batch of {rows} rows does not divide over {_sizes(mesh, spec[0])}: "
            f"{less}{rows + parts - rows % parts} would"
        )
    return NamedSharding(mesh, spec)


def init(model: Decoder, rng: jax.Array, mesh: Mesh, rules: str | Rules | None = None) -> dict:
    """`model.init` with every parameter made where it belongs: none is ever whole on a device.

    Raises:
        ValueError: as `shardings`.
    """
    tokens = jnp.zeros((1, 2), jnp.int32)
    placed = shardings(model.cfg, mesh, rules)
    return jax.jit(lambda key: model.init(key, tokens), out_shardings=placed)(rng)


def activation_rules(rules: str | Rules | None = None) -> list[tuple[str, Axes]]:
    """The same rules for `flax.linen.logical_axis_rules`, every logical axis named."""
    rules = find_rules(rules)
    return [*rules.items(), *((name, None) for name in LOGICAL_AXES if name not in rules)]


@functools.lru_cache(maxsize=8)  # tracing a model takes longer than all that is made of it here
def _boxed_shapes(cfg: Config) -> dict:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Decoder(cfg).boxed_init, jax.random.key(0), tokens)


def _check_mesh_axes(rules: Rules, mesh: Mesh | AbstractMesh) -> None:
    for name, axes in rules.items():
        for axis in as_tuple(axes):
            if axis not in mesh.shape:
                raise ValueError(
                    f"rules: {name!r} maps to {axis!r}, which the mesh lacks: it has "
                    f"{', '.join(mesh.shape)}"
                )


def _uneven(mesh: Mesh | AbstractMesh, name: str, size: int, axes: Axes, where: str) -> str:
    parts = parts_of(mesh, axes)
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    near = [max(n for n in divisors if n < parts), *(n for n in divisors if n > parts)][:2]
    return (
        f"  {where}: {name}={size} does not divide by {_sizes(mesh, axes)}: "
        f"{' or '.join(map(str, near))} would, or a rule that maps {name!r} to None"
    )


def _sizes(mesh: Mesh | AbstractMesh, axes: Axes) -> str:
    """('data', 'fsdp') -> "data=2 x fsdp=4"."""
    sizes = {axis: mesh.shape[axis] for axis in as_tuple(axes)}
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)


def parts_of(mesh: Mesh | AbstractMesh, axes: Axes) -> int:
    """How many parts some axes of a mesh cut an axis of an array into."""
    return math.prod(mesh.shape[axis] for axis in as_tuple(axes))


def _keys(path: tuple) -> tuple[str, ...]:
    """The names of dicts at the end of a path, which are those of a parameter."""
    keys: list[str] = []
    for key in reversed(path):
        if not isinstance(key, jax.tree_util.DictKey):
            break
        keys.append(key.key)
    return tuple(reversed(keys))


def _path(path: tuple) -> str:
    return "/".join(_keys(path)).removeprefix("params/")


def _is_names(x: object) -> bool:
    return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)
