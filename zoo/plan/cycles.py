"""How long TPU's compiler expects cores to be busy with its own program, by parts of the model.

Optimised HLO has an estimate in cycles beside nearly every instruction that keeps a core busy, what
it waits for its memory included. A cost model made it; nothing ran. What goes on beside cores has
none: asynchronous copies and collectives, and what SparseCores do. Nor have Pallas kernels, of
which `zoo.plan.kernels` says what is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from zoo.plan.instructions import Instruction, called, dims_of, fused_in, operand_shape, split

PROJECTIONS, ATTENTION, EXPERTS = "attention, projections", "attention, the rest", "experts"
PLACES = (
    PROJECTIONS, ATTENTION, "MLP", EXPERTS, "norms and residuals", "embedding, head and loss",
    "optimizer", "between layers, or unnamed",
)  # fmt: skip
PRODUCTS, ELEMENTWISE, MOVING = KINDS = ("products", "elementwise", "moving data")

Parts = dict[tuple[str, str], float]
"""Of a place and a kind of work: its cycles, or seconds."""

_ESTIMATED = re.compile(r'"estimated_cycles":"(\d+)"')
_LINEAR = r"(?:q|k|v|o|gate|beta|weigh|k_rope|\w+_(?:up|down))"
_FOUND_BY = (
    ("norms and residuals", r"/(?:\w+_)?norm/"),
    (EXPERTS, r"/moe/"),
    ("MLP", r"/mlp/"),
    (PROJECTIONS, rf"/(?:attn|delta)/(?:.*/)?{_LINEAR}/[^/]+$"),
    (ATTENTION, r"/(?:attn|delta)/"),
    ("norms and residuals", r"/(?:attention|ffn)/"),
    ("between layers, or unnamed", r"Decoder\._run|^$"),
    ("embedding, head and loss", r"Decoder|jvp\("),
    ("optimizer", r"^jit\(step\)/"),
    ("embedding, head and loss", r""),
)
"""Where an instruction belongs, by the first of these that its `op_name` has."""

_MOVES = re.compile(
    r"(?:^|/)(?:dynamic[_-]slice|dynamic[_-]update[_-]slice|slice|squeeze|concatenate|transpose|"
    r"broadcast|broadcast_in_dim|reshape|gather|scatter|scatter-add|pad|copy|iota|convert|"
    r"convert_element_type|dot_general|)$"
)
"""Ends of names that only move data, or change its type; of products, those that have none."""


def by_part(computations: Mapping[str, list[Instruction]], runs: Mapping[str, int]) -> Parts:
    """Cycles of a program, each instruction's as often as its computation runs.

    What a fusion is made of is in its own estimate.
    """
    products, fused, found = set(), fused_in(computations), {}
    for name, instructions in computations.items():  # what is called stands before who calls it
        for one in instructions:
            if one.opcode in ("dot", "convolution") or called(one, "calls") in products:
                products.add(name)
    for name, instructions in computations.items():
        for one in instructions if name not in fused else ():
            if (estimated := _ESTIMATED.search(one.attributes)) is not None:
                product = one.opcode in ("dot", "convolution") or called(one, "calls") in products
                key = part(one, product)
                found[key] = found.get(key, 0) + runs.get(name, 0) * int(estimated[1])
    return found


def part(one: Instruction, product: bool) -> tuple[str, str]:
    """The place and the kind of work of an instruction that has products in it or has not."""
    named = re.search(r'op_name="([^"]*)"', one.attributes)
    name = named[1] if named is not None else ""
    place = next(place for place, pattern in _FOUND_BY if re.search(pattern, name))
    if product:
        return place, PRODUCTS
    if place == PROJECTIONS:
        place = ATTENTION
    return place, MOVING if _MOVES.search(name) or _MOVES.search(one.opcode) else ELEMENTWISE


def attended(kernel: str, one: Instruction, shapes: Mapping[str, str]) -> float:
    """Operations of a splash attention kernel if it skipped nothing: q k and p v forward; backward
    also what p's gradient needs, and one or two products for the gradients that it makes."""
    operands = (operand_shape(o, shapes) for o in split(one.operands))
    arrays = [dims_of(shape) for shape in operands if "bf16[" in shape]
    if len(arrays) < 3:
        return 0.0
    q, k, v = arrays[:3]
    widths = {"dq": 2 * q[-1] + v[-1], "dkv": 2 * q[-1] + 2 * v[-1]}
    kind = next((kind for kind in widths if f"_{kind}" in kernel), None)
    return 2.0 * math.prod(q[:-1]) * k[-2] * widths.get(kind, q[-1] + v[-1])
