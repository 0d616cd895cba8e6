"""What a model is made of, from shapes alone: parameters, active parameters, cache, as a tree.

Nothing is allocated: a 671-billion-parameter model is described in a second.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table
from rich.tree import Tree

from zoo import cache, sharding
from zoo.axes import unboxed
from zoo.config import Config, MoE
from zoo.decoder import Decoder


class Size(NamedTuple):
    """Counts of one model, without its layers of multi-token prediction.

    `parameters` in all; `active` of them work on a token: all but the experts it is not sent to,
    and of the embedding table, unless it is the head too, nothing but a row; `cache_bytes` per
    token in bfloat16, and `state_bytes` per row whatever its length.
    """

    parameters: int
    active: int
    cache_bytes: int
    state_bytes: int


def shapes(cfg: Config, param_dtype: jnp.dtype = jnp.float32) -> dict:
    """`Decoder(cfg).init` as `jax.ShapeDtypeStruct`s."""
    model = Decoder(cfg, param_dtype=param_dtype)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return unboxed(jax.eval_shape(model.boxed_init, jax.random.key(0), tokens))


def size(cfg: Config) -> Size:
    """Parameters, active parameters, cache bytes per token and state bytes per row."""
    params = shapes(dataclasses.replace(cfg, mtp=()))["params"]
    total = _count(params)
    idle = 0 if cfg.tie_embeddings else _count(params["embed"])
    for i, stack in enumerate(cfg.stacks):
        for j, layer in enumerate(stack.layers):
            if isinstance(layer.ffn, MoE):
                moe = params[f"stack_{i}"][f"layer_{j}"]["moe"]
                routed = _count([moe[name] for name in ("gate", "up", "down")])
                idle += routed // layer.ffn.experts * (layer.ffn.experts - layer.ffn.top_k)
    return Size(total, total - idle, cache.bytes_per_token(cfg), cache.state_bytes(cfg))


def tree(cfg: Config, title: str) -> Tree:
    """A readable tree of shapes and counts, for `rich.print`."""
    found = size(cfg)
    state = f" and {found.state_bytes:,} bytes per row" if found.state_bytes else ""
    root = Tree(
        f"[bold]{title}[/bold]  {human(found.parameters)} parameters, {human(found.active)} active "
        f"per token, cache {found.cache_bytes:,} bytes per token{state} (bf16), "
        f"up to {cfg.max_length:,} tokens"
    )
    _grow(root, shapes(cfg)["params"], cfg)
    return root


def placement(
    cfg: Config, mesh: str, rules: str | None = None, dtype: jnp.dtype = jnp.bfloat16
) -> Table:
    """Where every parameter lies on a mesh, which need not exist, and its bytes on each device.

    Args:
        cfg: the model.
        mesh: as for `zoo.make_mesh`, without -1.
        rules: a table of `zoo.sharding.RULES`.
        dtype: of the parameters.

    Raises:
        ValueError: as `zoo.sharding.shardings`.
    """
    abstract = sharding.abstract_mesh(mesh)
    placed = sharding.shardings(cfg, abstract, rules)
    sharding.check_mesh(abstract, sharding.find_rules(rules))
    table = Table(
        "parameter", "shape", "cut over", "on each device",
        title=f"{abstract.size} devices: {mesh} ({jnp.dtype(dtype).name})", show_footer=True,
    )  # fmt: skip
    table.columns[0].overflow, table.columns[3].justify = "fold", "right"
    total = held = 0
    leaves = jax.tree_util.tree_leaves_with_path(shapes(cfg, dtype)["params"])
    for (path, leaf), where in zip(leaves, jax.tree.leaves(placed), strict=True):
        size = leaf.dtype.itemsize
        part = math.prod(where.shard_shape(leaf.shape)) * size
        total, held = total + leaf.size * size, held + part
        name = "/".join(key.key for key in path)
        table.add_row(name, str(list(leaf.shape)), _cut(where), f"{part:,}")
    for column, text in zip(table.columns, ("total", "", f"{total:,}", f"{held:,}"), strict=True):
        column.footer = text
    return table


def _cut(where: jax.sharding.NamedSharding) -> str:
    """ "0: fsdp, 2: data x tensor": mesh axes larger than 1, by the number of the array's axis."""
    found = []
    for i, axes in enumerate(where.spec):
        axes = [a for a in sharding.as_tuple(axes) if where.mesh.shape[a] > 1]
        found += [f"{i}: {' x '.join(axes)}"] if axes else []
    return ", ".join(found) or "whole"


def human(count: int) -> str:
    """671026419200 -> '671.03B'."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return str(count)


def _grow(branch: Tree, params: dict, cfg: Config) -> None:
    for name in sorted(params, key=_reading_order):
        node = params[name]
        if hasattr(node, "shape"):
            branch.add(f"{name} [cyan]{list(node.shape)}[/cyan]")
        elif all(hasattr(leaf, "shape") for leaf in node.values()):
            leaves = ", ".join(f"{k} [cyan]{list(v.shape)}[/cyan]" for k, v in node.items())
            branch.add(f"{name}: {leaves}  [dim]{human(_count(node))}[/dim]")
        else:
            label = f"[bold]{name}[/bold]  [dim]{human(_count(node))}[/dim]"
            if name.startswith("stack_"):
                repeats = cfg.stacks[int(name.removeprefix("stack_"))].repeats
                label += f"  x {repeats}"
            _grow(branch.add(label), node, cfg)


def _reading_order(name: str) -> tuple[int, str]:
    order = (
        "embed",
        "stack",
        "layer",
        "attn_norm",
        "attn",
        "delta",
        "ffn_norm",
        "mlp",
        "moe",
        "final_norm",
    )
    rank = next((i for i, part in enumerate(order) if name.startswith(part)), len(order))
    return rank, f"{int(name.split('_')[1]):06d}" if rank in (1, 2) else name


def _count(node: object) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(node))
