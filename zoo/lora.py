"""Low-rank adapters: LoRA (arXiv:2106.09685), on quantised weights QLoRA (arXiv:2305.14314).

    params = adapt(ckpt.params, rank=16, alpha=32.0, key=jax.random.key(0))
    learnt, frozen = split(params)  # gradients and moments are of `learnt` alone
    params = join(learnt, frozen)  # what `Decoder.apply` takes
    zoo.save_hf("out", ckpt.config, sums(params), source=ckpt.source)

A linear map stays as it is, in any type or quantised, and a product of two thin ones is added:

    y = x W + alpha / R * (x A) B

B starts as zeros, so that the model is at first what it was. Where a whole matrix is needed (the
experts of a layer, latent attention against a cache) it is W + alpha / R * A B, made for one layer
at a time and rounded to the type of the computation.

Axes: R rank; ins and outs are those of a linear map; layers L and experts E may lead.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from zoo.precision import precision
from zoo.quantized import Quantized, floats
from zoo.rounding import Place, matrices

TARGETS = ("attn/*", "delta/*", "mlp/*", "moe/shared/*")
"""Linear maps that get an adapter where nobody says which: all but routers, experts, indexers."""


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Adapted:
    """A linear map with an adapter, standing where its array would.

    Attributes:
        base: [..., *ins, *outs], an array or quantised.
        a: f32[..., *ins, R].
        b: f32[..., R, *outs].
        scale: alpha / R.
    """

    base: jax.Array | Quantized
    a: jax.Array
    b: jax.Array
    scale: float

    def tree_flatten_with_keys(self):
        names = ("base", "a", "b")  # as of a dict, so that paths of parameters go on
        return tuple((DictKey(name), getattr(self, name)) for name in names), self.scale

    @classmethod
    def tree_unflatten(cls, scale, children):
        return cls(*children, scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """The map's, as if it were an array."""
        return tuple(self.base.shape)

    @property
    def lead(self) -> int:
        """How many axes are of layers and experts."""
        return self.a.ndim + self.b.ndim - 2 - len(self.shape)

    def whole(self, dtype: jnp.dtype) -> jax.Array:
        """dtype[*shape]: the sum, which is float32 before it is rounded."""
        lead = tuple(range(self.lead))
        axes = (((self.a.ndim - 1,), (self.lead,)), (lead, lead))
        product = jax.lax.dot_general(self.a, self.b, axes, precision=precision(dtype))
        return (whole(self.base, jnp.float32) + self.scale * product).astype(dtype)


def whole(held: jax.Array | Quantized | Adapted, dtype: jnp.dtype) -> jax.Array:
    """A parameter as an array: one that is held as an array as it is, others in `dtype`."""
    if isinstance(held, Adapted):
        return held.whole(dtype)
    return floats(held, dtype)


def adapt(
    params: dict,
    rank: int,
    alpha: float,
    key: jax.Array,
    targets: Sequence[str] | None = None,
) -> dict:
    """Parameters with `Adapted` where a linear map was; the model computes what it did.

    Args:
        params: of `Decoder.init` or `zoo.load`, floats or quantised.
        rank: R of every adapter.
        alpha: weighs adapters by alpha / rank.
        key: of A, which is uniform within 1 / sqrt(inputs), as peft starts it.
        targets: names of linear maps within a layer, such as "attn/q" or "moe/up", or patterns of
            them: "attn/*". None is `TARGETS`.

    Raises:
        ValueError: a target that no linear map has, or none at all.
    """
    is_leaf = lambda x: isinstance(x, Quantized | Adapted)  # noqa: E731
    leaves, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)
    found = [_linear_map("/".join(k.key for k in path), leaf) for path, leaf in leaves]
    names = sorted({name for name, _ in filter(None, found)})
    for pattern in targets or ():
        if not any(_matches(name, pattern) for name in names):
            has = ", ".join(names) or "none without an adapter"
            raise ValueError(f"targets: {pattern!r} is no linear map; this model has {has}")
    wanted = TARGETS if targets is None else targets
    chosen = [f and any(_matches(f[0], pattern) for pattern in wanted) for f in found]
    if not any(chosen):
        raise ValueError(f"targets={wanted!r} name no linear map: name some of {', '.join(names)}")
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        _adapted(leaf, at[1], rank, alpha / rank, key) if take else leaf
        for (_, leaf), at, take, key in zip(leaves, found, chosen, keys, strict=True)
    )


def _linear_map(path: str, leaf: Any) -> tuple[str, Place] | None:
    """What "params/stack_0/layer_0/attn/q/w" is called within its layer, and its axes."""
    parts = path.removeprefix("params/").split("/")
    where = matrices("/".join(parts), leaf.shape)
    if where is None or not parts[1].startswith("layer_") or _is_adapted(leaf):
        return None
    return "/".join(parts[2:-1]), where


def _matches(name: str, pattern: str) -> bool:
    """Part by part, so that "attn/*" is not "attn/indexer/q"."""
    names, patterns = name.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))


def _adapted(base: Any, where: Place, rank: int, scale: float, key: jax.Array) -> Adapted:
    ins, outs = where.shape[: where.inputs], where.shape[where.inputs :]
    bound = 1 / math.sqrt(math.prod(ins))
    a = jax.random.uniform(key, (*where.lead, *ins, rank), jnp.float32, -bound, bound)
    return Adapted(base, a, jnp.zeros((*where.lead, rank, *outs), jnp.float32), scale)


def split(params: dict) -> tuple[dict, dict]:
    """What learns and what stays, each with None where the other has an array.

    Adapters learn, if there are any; without, everything does.
    """
    nodes, tree = jax.tree.flatten(params, is_leaf=_is_adapted)
    if not any(map(_is_adapted, nodes)):
        return params, jax.tree.map(lambda _: None, params)
    learnt = [replace(node, base=None) if _is_adapted(node) else None for node in nodes]
    frozen = [replace(node, a=None, b=None) if _is_adapted(node) else node for node in nodes]
    return tree.unflatten(learnt), tree.unflatten(frozen)


def join(learnt: dict, frozen: dict) -> dict:
    """The parameters that `split` took apart."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, learnt, frozen, is_leaf=lambda x: x is None
    )


class Sum:
    """A plain parameter of `merged`, made when it is read, which `zoo.save_hf` does layer by layer.

    Attributes:
        held: `Adapted` or `Quantized`.
        dtype: of what stayed; float32 where that is quantised.
    """

    def __init__(self, held: Adapted | Quantized):
        self.held = held
        stayed = held.base if isinstance(held, Adapted) else held
        self.dtype = jnp.dtype("float32") if isinstance(stayed, Quantized) else stayed.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.held.shape)

    def __getitem__(self, at: tuple[int, ...]) -> jax.Array:
        """The part at this index of the axes of layers and experts; of () all."""
        return whole(jax.tree.map(lambda x: x[at], self.held), self.dtype)


def sums(params: dict) -> dict:
    """As `merged`, with a `Sum` for every parameter that is not plain.

    For `zoo.save_hf`: a model that is trained by adapters seldom fits a second time, or as floats.
    """

    def one(node: Any) -> Any:
        return Sum(node) if isinstance(node, Adapted | Quantized) else node

    if not has_adapters(params):
        return params
    return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, Adapted | Quantized))


def merged(params: dict) -> dict:
    """Plain parameters: every sum in float32, rounded to the type of what stayed.

    What is quantised becomes float32.
    """
    if not has_adapters(params):
        return params
    return jax.tree.map(lambda x: x[()] if isinstance(x, Sum) else x, sums(params))


def has_adapters(params: dict) -> bool:
    """Whether any parameter of a tree is `Adapted`."""
    return any(map(_is_adapted, jax.tree.leaves(params, is_leaf=_is_adapted)))


def shardings(placed: dict, params: dict) -> dict:
    """Where parameters lie that may be adapted or quantised: A as the inputs, B as the outputs.

    Args:
        placed: a `NamedSharding` for each, as if it were an array.
        params: arrays or shapes; what is quantised stays where it lies, if it is on the mesh.
    """

    def one(where: NamedSharding, node: Any) -> Any:
        def put(*axes: Any) -> NamedSharding:
            return NamedSharding(where.mesh, PartitionSpec(*axes))

        if isinstance(node, Quantized):
            on_mesh = lambda x: isinstance(x.sharding, NamedSharding)  # noqa: E731
            return jax.tree.map(lambda x: x.sharding if on_mesh(x) else put(), node)
        if not _is_adapted(node):
            return where
        axes = (*where.spec, *(None,) * (len(node.shape) - len(where.spec)))
        lead, inner = node.lead, node.a.ndim - 1
        a, b = put(*axes[:inner], None), put(*axes[:lead], None, *axes[inner:])
        return replace(node, base=one(where, node.base), a=a, b=b)

    return jax.tree.map(one, placed, params)


def fingerprint(frozen: dict) -> str:
    """16 hexadecimal digits of the bits of all arrays, wherever they lie."""

    @jax.jit
    def sums(leaves: list[jax.Array]) -> list[jax.Array]:
        return [jnp.sum(_bits(x), dtype=jnp.uint32) for x in leaves]

    found = [int(x) for x in sums(jax.tree.leaves(frozen))]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def _bits(x: jax.Array) -> jax.Array:
    """Each element as an unsigned integer of its size."""
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _is_adapted(x: Any) -> bool:
    return isinstance(x, Adapted)
