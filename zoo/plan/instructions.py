"""A compiled program's text: computations of instructions, and how often each of them runs.

Names stand without their "%", shapes as XLA writes them: bf16[8,128]{1,0}.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*->.*\{$")
_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_NAMED = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = ")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str
    root: bool = False


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if (header := _HEADER.match(line)) is not None:
                current = computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif _NAMED.match(line):  # what kernels say of themselves may take further lines
            current.append(_instruction(line))
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    operands, attributes = rest[start + 1 : stop], rest[stop + 1 :]
    root = line.lstrip().startswith("ROOT ")
    return Instruction(name.lstrip("%"), shape, rest[:start], operands, attributes, root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)


def runs_of(computations: dict[str, list[Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs. Callers stand behind what they call, so last comes first."""
    runs = {entry: 1}
    for name in reversed(list(computations)):
        for one in computations[name]:
            for group in _CALLS.finditer(one.attributes):
                times = _trips(one, name, computations) if group[1] == "body" else 1
                for callee in re.findall(r"[\w.\-]+", group[2] or group[3]):
                    runs[callee] = runs.get(callee, 0) + times * runs.get(name, 0)
    return runs


def _trips(loop: Instruction, caller: str, computations: dict[str, list[Instruction]]) -> int:
    """Of a while loop: what XLA knows, else from its counter's start to the constant that it stays
    below, by its step; 1 where that is no constant."""
    if (known := _TRIPS.search(loop.attributes)) is not None:
        return int(known[1])
    inside = {one.name: one for one in computations.get(called(loop, "condition"), [])}
    root = next((one for one in inside.values() if one.root), None)
    if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
        return 1
    counter, bound = (inside.get(_name(text)) for text in split(root.operands))
    if counter is None or counter.opcode != "get-tuple-element" or _constant(bound) is None:
        return 1
    index = _index(counter)
    step = _added(index, called(loop, "body"), computations, {}) or 1
    way = _constant(bound) - _start(loop, index, {one.name: one for one in computations[caller]})
    return max(0, -(-way // step))


def _start(loop: Instruction, index: int, inside: dict[str, Instruction]) -> int:
    """The constant that a loop's counter starts from; 0 where it is none. Pipelined loops have had
    a round before."""
    one = inside.get(_name(loop.operands))
    if one is not None and one.opcode == "tuple":
        one = inside.get(_name(split(one.operands)[index]))
    while one is not None and one.opcode == "copy":
        one = inside.get(_name(one.operands))
    return _constant(one) or 0


def fused_in(computations: dict[str, list[Instruction]]) -> set[str]:
    """The computations that fusions are made of, or that run elsewhere than on the core."""
    return {called(one, "calls") for inside in computations.values() for one in inside}


def _constant(one: Instruction | None) -> int | None:
    """The whole number that an instruction is, if it is one."""
    number = one is not None and one.opcode == "constant" and one.operands.isdigit()
    return int(one.operands) if number else None


def called(one: Instruction, role: str) -> str:
    """The computation that an instruction calls as its `role`; "" without one."""
    found = re.search(rf"\b{role}=%?([\w.\-]+)", one.attributes)
    return "" if found is None else found[1]


def _index(one: Instruction) -> int:
    found = re.search(r"\bindex=(\d+)", one.attributes)
    return int(found[1]) if found is not None else 0


def _added(index: int, computation: str, computations: dict, given: dict[int, int]) -> int | None:
    """The constant in the sum that a computation returns as its element `index`, if it is one.

    `given` has the constants among its parameters. Loops that XLA unrolled count by more than one.
    """
    inside = {one.name: one for one in computations.get(computation, [])}
    root = next((one for one in inside.values() if one.root), None)
    if root is None:
        return None
    names = [_name(text) for text in split(root.operands)]
    one = inside.get(names[index]) if root.opcode == "tuple" and index < len(names) else root
    if one is not None and one.opcode == "get-tuple-element":
        index, one = _index(one), inside.get(_name(one.operands))
    if one is None:
        return None

    def constant(text: str) -> int | None:
        found = inside.get(_name(text))
        if found is not None and found.opcode == "parameter":
            return given.get(int(found.operands))
        return _constant(found)

    values = [constant(text) for text in split(one.operands) if text.strip()]
    if one.opcode == "fusion":
        known = {i: value for i, value in enumerate(values) if value is not None}
        return _added(index, called(one, "calls"), computations, known)
    return next((value for value in values if value), None) if one.opcode == "add" else None


def operand_shape(text: str, shapes: dict[str, str]) -> str:
    """The shape of an operand, which the text names, or spells out before the name."""
    found = SHAPE.search(text)
    return text if found is not None else shapes.get(_name(text), "")


def _name(operand: str) -> str:
    """Without its shape, and the number that XLA writes before every fifth."""
    return re.split(r"[\s/%]", operand.strip())[-1]


def split(operands: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(operands):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth:
            parts.append(operands[start:i])
            start = i + 1
    return [*parts, operands[start:]]


def dims_of(shape: str) -> list[int]:
    found = SHAPE.search(shape)
    return [int(n) for n in found[2].split(",") if n] if found is not None else []


def bytes_of(shape: str) -> int:
    total = 0
    for kind, dims in SHAPE.findall(shape):
        bits = _BITS.get(kind)
        if bits is None:
            digits = re.search(r"\d+", kind)
            bits = int(digits[0]) if digits else 8
        total += math.prod(int(n) for n in dims.split(",") if n) * bits // 8
    return total
