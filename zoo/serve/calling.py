"""Grammars that let a model write calls of given functions, in its own format, and nothing else.

They are Lark as llguidance reads it (https://github.com/guidance-ai/llguidance), where `<[7]>` is
the token 7. Special tokens of the vocabulary are written so; other text is written as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from zoo.serve.schema import is_text
from zoo.serve.thoughts import Thinks
from zoo.serve.tools import Format, Hole, Parts, Written, properties

SPACE = "[ ]?"
"""Between the parts of JSON: where any white space may stand, models can go on with it for ever."""
ANYTHING = "/(?s:.*)/"
NAME = re.compile(r"""[^\s"'`\\<>()\[\]{},=]+""")
"""Of a function, in all formats."""


class Vocabulary(Protocol):
    """What a grammar asks of a vocabulary."""

    def special(self, text: str) -> list[str | int]:
        """A text in pieces: special tokens as their ids, what is between as it is."""


class Rules:
    """Rules of a grammar, as they are needed; methods give what right sides of rules can hold."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary, self._rules = vocabulary, [f"TEXT: {ANYTHING}"]

    def grammar(self, start: str) -> str:
        """All of it, beginning with `start`."""
        return "\n".join([f"start: {start}", *self._rules])

    def rule(self, right: str, options: str = "") -> str:
        """A rule of its own."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {right}")
        return name

    def one_of(self, choices: Collection[str]) -> str:
        return self.rule(" | ".join(choices))

    def text(self, text: str) -> str:
        """That text."""
        pieces = self._vocabulary.special(text)
        return " ".join(map(_piece, pieces)) if pieces else '""'

    def until(self, end: str) -> str:
        """Any text up to the first `end`, and that."""
        first, *rest = self._vocabulary.special(end)
        if isinstance(first, str) and not rest:
            return self.rule(ANYTHING, f"[suffix={_quoted(first)}]")
        if isinstance(first, int):
            return self.rule(" ".join(["TEXT", *map(_piece, [first, *rest])]))
        before = self._terminal(f"/(?s:.*){_escaped(first)}/")
        return self.rule(" ".join([before, *map(_piece, rest)]))

    def without(self, openings: Sequence[str], leads: bool) -> str:
        """Any text that has none of some openings, or does not begin with one."""
        either = "|".join(map(_escaped, openings))
        found = rf"/\s*({either})(?s:.*)/" if leads else f"/(?s:.*)({either})(?s:.*)/"
        return self._terminal(f"{ANYTHING} & ~{found}")

    def json(self, schema: Mapping[str, Any]) -> str:
        """JSON of a schema."""
        spaced = {**schema, "x-guidance": {"whitespace_pattern": SPACE}}
        return self.rule(f"%json {json.dumps(spaced)}")

    def pattern(self, pattern: str) -> str:
        """What a regular expression describes."""
        return self._terminal(f"/{_delimited(pattern)}/")

    def _terminal(self, right: str) -> str:
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: {right}")
        return name


def thought(rules: Rules, how: Thinks | None) -> str:
    """What comes before an answer: the rest of a thought that the prompt began, or perhaps one."""
    if how is None:
        return ""
    ends = f"{rules.until(how.marks.close + how.marks.then)} /\\n*/"
    return f"{ends} " if how.opened else f"({rules.text(how.marks.open)} {ends})? "


def final(rules: Rules, how: Thinks | None) -> str:
    """What an answer that is to be shown begins with, after `thought`."""
    return f"{rules.text(how.marks.final)} " if how and how.marks.final else ""


def calls(
    rules: Rules,
    written: Written,
    tools: Sequence[Mapping[str, Any]],
    *,
    needed: bool,
    several: bool,
    opening: str = "",
) -> str:
    """Calls and nothing else.

    Args:
        rules: that it adds to.
        written: how calls are written.
        tools: those that may be called.
        needed: whether there has to be a call: then the schema of a tool holds unless it is
            `strict: false`, else where it is `strict: true`.
        several: whether there may be more than one call.
        opening: what they begin with and is written already.
    """
    known = [parameters(tool, needed) for tool in tools]

    def one(call: Parts) -> str:
        return rules.one_of([_call(rules, replace(written, call=call), tool) for tool in known])

    call, begin = one(written.call), written.begin.removeprefix(opening)
    first = call
    if opening and not written.begin:
        first = one((written.call[0].removeprefix(opening), *written.call[1:]))
    parts = [rules.text(begin) if begin else "", first]
    if several and written.several:
        between = rules.text(written.between) if written.between else ""
        parts.append(f"({between} {call})*")
    return " ".join(filter(None, [*parts, written.end and rules.text(written.end)]))


def perhaps_calls(
    rules: Rules,
    form: Format,
    written: Written,
    tools: Sequence[Mapping[str, Any]],
    how: Thinks | None,
    *,
    several: bool,
) -> str:
    """Any text, calls, or one before the other, after `thought`."""
    how_many = dict(needed=False, several=several)
    plain = final(rules, how) + rules.without(form.opens, form.leads)
    if form.leads:
        return f"{plain} | {calls(rules, written, tools, **how_many)}"
    whole = written.begin or written.call[0]
    opening = next(text for text in form.opens if whole.startswith(text))
    rest = calls(rules, written, tools, opening=opening, **how_many)
    return f"{plain} | {rules.until(opening)} {rest}"


def calls_beside(
    rules: Rules, written: Written, tools: Sequence[Mapping[str, Any]], *, several: bool
) -> str:
    """Calls, where an answer may have another form instead, which can be JSON.

    What both can begin with is a piece by itself: which of them it is has to show after it.
    """
    shared = "{" if not written.begin and written.call[0].startswith("{") else ""
    rest = calls(rules, written, tools, needed=False, several=several, opening=shared)
    return f"{rules.text(shared)} {rest}" if shared else rest


def parameters(tool: Mapping[str, Any], needed: bool = True) -> tuple[str, Mapping[str, Any]]:
    """A tool's name and the schema that holds for its arguments, see `calls`.

    A function without parameters takes none, and one whose schema does not hold takes what it has
    in any type. Properties that are not named are none, unless the schema says they may be.
    """
    function = tool["function"]
    strict = function.get("strict")
    if not (needed if strict is None else strict):
        known = properties([tool])[function["name"]].items()
        loose = {key: said if is_text(said) else {} for key, said in known}
        return function["name"], {"type": "object", "properties": loose}
    said = function.get("parameters") or {"properties": {}}
    closed = {"additionalProperties": False} if "properties" in said else {}
    return function["name"], {"type": "object", **closed, **said}


def _call(rules: Rules, written: Written, function: tuple[str, Mapping[str, Any]]) -> str:
    name, schema = function

    def part(piece: str | Hole) -> str:
        match piece:
            case Hole.NAME:
                return rules.text(name)
            case Hole.COUNT:
                return "/[0-9]+/"
            case Hole.ARGUMENTS:
                return rules.json(schema)
            case Hole.PARAMETERS:
                return _parameters(rules, written, schema)
        return rules.text(piece)

    return " ".join(map(part, filter(None, written.call)))


def _parameters(rules: Rules, written: Written, schema: Mapping[str, Any]) -> str:
    """Parameters in the order of their schema, each as `written.parameter` has it."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    needed = schema.get("required") or ()
    # From the last to the first: what can follow if nothing was written before, and if something.
    first = later = '""'
    for key, said in reversed((schema.get("properties") or {}).items()):
        if said is False:  # nothing has this schema, and all that of True
            continue
        this = _parameter(rules, written, key, {**({} if said is True else said), **shared})
        alone, behind = f"{this} {later}", f"{_then(rules, written.comma)} {this} {later}"
        if key not in needed:
            alone, behind = f"{alone} | {first}", f"{behind} | {later}"
        first, later = rules.rule(alone), rules.rule(behind)
    return first


def _parameter(rules: Rules, written: Written, key: str, schema: Mapping[str, Any]) -> str:
    """A parameter and its value."""
    text = is_text(schema) and written.text
    parts = written.text if text else written.parameter
    found = []
    for i, piece in enumerate(parts):
        if piece is Hole.KEY:
            found.append(rules.text(key))
        elif piece is Hole.VALUE:
            found.append(rules.json(schema))
        elif piece is Hole.TEXT:
            return " ".join([*found, _until(rules, schema, parts[i + 1])])
        else:
            found.append(rules.text(piece))
    return " ".join(found)


def _until(rules: Rules, schema: Mapping[str, Any], end: str) -> str:
    """A text of a schema as it is, and what stands behind it."""
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices is None:
        return rules.until(end)
    return f"{rules.one_of([rules.text(text) for text in choices])} {rules.text(end)}"


def _then(rules: Rules, text: str) -> str:
    return f" {rules.text(text)}" if text else ""


def _piece(piece: str | int) -> str:
    return f"<[{piece}]>" if isinstance(piece, int) else _quoted(piece)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return _delimited(re.escape(text))


def _delimited(pattern: str) -> str:
    """A pattern to stand between slashes on a line."""
    return re.sub(r"\\.|/", lambda m: r"\/" if m[0] == "/" else m[0], pattern).replace("\n", r"\n")
