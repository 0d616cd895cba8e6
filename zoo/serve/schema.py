"""Validation by the part of JSON Schema that the endpoints use, so that what is published is what
is checked: type, enum, const, bounds, lengths, items, properties, required, anyOf, and
additionalProperties.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from zoo.serve.errors import ApiError

Schema = Mapping[str, Any]

MOST_DEPTH = 64
"""Of lists and objects in JSON that comes from outside."""


def parse(raw: bytes | str, where: str = "") -> Any:
    """The value of JSON, which has no numbers but JSON's, and is not too deep for whoever reads it.

    Raises:
        ApiError: it names the field `where`, and what is wrong.
    """
    param, name = where or None, where or "the body"
    try:
        value = json.loads(raw, parse_constant=no_number)
    except (ValueError, RecursionError) as e:
        why = "it is nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise ApiError(f"{name} is not JSON: {why}", param=param, code="invalid_json") from e
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return value
    raise ApiError(f"{name} has more than {MOST_DEPTH} levels of lists and objects", param=param)


def _children(value: Any) -> list:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def no_number(name: str) -> NoReturn:
    """Refuses what Python's JSON has for a number and JSON has not: NaN, Infinity."""
    raise ValueError(f"{name} is no number of JSON")


def check(value: Any, schema: Schema, where: str = "") -> None:
    """Raises ApiError naming the field, its value and what it must be.

    A property that is null counts as absent, as OpenAI has it.
    """
    if isinstance(value, str) and not encodes(value):
        raise _wrong(where, value, "must be Unicode text, without halves of surrogate pairs")
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
            return isinstance(value, str)
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
    """The alternative that is most like the value is the one whose complaint helps."""
    options, failed = schema["anyOf"], []
    for option in options:
        try:
            check(value, option, where)
            return
        except ApiError as e:
            failed.append((_likeness(value, option), e))
    if all(like == 0 for like, _ in failed):
        kinds = dict.fromkeys(_named(option["type"]) for option in options)
        raise _wrong(where, value, f"must be {' or '.join(kinds)}")
    if isinstance(value, dict) and value.get("type") is not None:
        said = [kind for option in options for kind in _types(option)]
        check(value["type"], {"type": "string", "enum": said}, f"{where}.type")
    raise max(failed, key=lambda f: f[0])[1]


def _likeness(value: Any, option: Schema) -> int:
    """0 for another type; 1 for the same; 2 if the first item or the field `type` fits too."""
    if not _is(value, option["type"]):
        return 0
    if isinstance(value, list):
        return 1 + (bool(value) and _is(value[0], option["items"]["type"]))
    return 1 + (isinstance(value, dict) and value.get("type") in _types(option))


def _types(option: Schema) -> list[str]:
    """What the field `type` may be in an alternative."""
    return option.get("properties", {}).get("type", {}).get("enum", [])


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


def is_text(schema: Any) -> bool:
    """Whether a schema lets a value be a text and nothing else."""
    if not isinstance(schema, Mapping):
        return False
    enum = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(enum, list) and enum:
        return all(isinstance(value, str) for value in enum)
    return schema.get("type") == "string"
