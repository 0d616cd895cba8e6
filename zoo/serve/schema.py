"""Validation by the part of JSON Schema that the endpoints use, so that what is published is what
is checked: type, enum, const, bounds, lengths, items, properties, required, anyOf, and
additionalProperties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.serve.errors import ApiError

Schema = Mapping[str, Any]


def check(value: Any, schema: Schema, where: str = "") -> None:
    """Raises ApiError naming the field, its value and what it must be.

    A property that is null counts as absent, as OpenAI has it.
    """
    if "anyOf" in schema:
        _any_of(value, schema, where)
        return
    kind = schema.get("type")
    if kind is not None and not _is(value, kind):
        raise _wrong(where, value, f"must be {_named(kind)}")
    if "enum" in schema and value not in schema["enum"]:
        raise _wrong(where, value, f"must be one of {', '.join(map(repr, schema['enum']))}")
    if kind in ("number", "integer"):
        _bounds(value, schema, where)
    elif kind in ("string", "array"):
        _length(value, schema, where)
    if kind == "array" and "items" in schema:
        for i, item in enumerate(value):
            check(item, schema["items"], f"{where}[{i}]")
    if kind == "object":
        _properties(value, schema, where)


def _is(value: Any, kind: str) -> bool:
    match kind:
        case "integer":
            return type(value) is int
        case "number":
            return type(value) is int or (type(value) is float and math.isfinite(value))
        case "string":
            return isinstance(value, str) and encodes(value)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    raise ValueError(f"a schema says type={kind!r}, which is not checked here")


def encodes(text: str) -> bool:
    """Whether it is Unicode text: JSON can write half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _any_of(value: Any, schema: Schema, where: str) -> None:
    """The alternative of the value's type is the one whose complaint helps."""
    failed = []
    for option in schema["anyOf"]:
        try:
            check(value, option, where)
            return
        except ApiError as e:
            failed.append((not _is(value, option.get("type", "object")), e))
    if all(other_type for other_type, _ in failed):
        kinds = dict.fromkeys(_named(option["type"]) for option in schema["anyOf"])
        raise _wrong(where, value, f"must be {' or '.join(kinds)}")
    raise min(failed, key=lambda f: f[0])[1]


def _bounds(value: float, schema: Schema, where: str) -> None:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above = schema.get("exclusiveMinimum", -math.inf)
    if not (low <= value <= high and value > above):
        least = f"above {above}" if "exclusiveMinimum" in schema else f"at least {low}"
        wanted = least if high == math.inf else f"{least} and at most {high}"
        raise _wrong(where, value, f"must be {wanted}")


def _length(value: Any, schema: Schema, where: str) -> None:
    unit = "characters" if isinstance(value, str) else "items"
    low = schema.get("minLength", schema.get("minItems", 0))
    high = schema.get("maxLength", schema.get("maxItems", math.inf))
    if not low <= len(value) <= high:
        bound = f"at least {low}" if len(value) < low else f"at most {high}"
        message = f"{where} has {len(value)} {unit} and must have {bound}"
        raise ApiError(message, param=where)


def _properties(value: dict, schema: Schema, where: str) -> None:
    known, dot = schema.get("properties", {}), f"{where}." if where else ""
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        path = f"{dot}{name}"
        if not encodes(name):
            raise ApiError(f"{where or 'the body'} has a key that is not Unicode text", param=where)
        if item is None:
            continue
        if name in known:
            check(item, known[name], path)
        elif others is False:
            raise ApiError(
                f"{path[:200]} is not a field of this request",
                param=path[:200],
                code="unknown_field",
            )
        elif isinstance(others, Mapping):
            check(item, others, path)
    for name in schema.get("required", ()):
        if value.get(name) is None:
            raise ApiError(f"{dot}{name} is missing", param=f"{dot}{name}")


def _wrong(where: str, value: Any, wanted: str) -> ApiError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return ApiError(f"{where or 'the body'}={shown} {wanted}", param=where or None)


def _named(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}"
