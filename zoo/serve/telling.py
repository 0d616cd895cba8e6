"""Calls of functions told while they are written: name and id first, then pieces of the arguments.

A call has begun where its name ends and its arguments begin. What comes later can still make it
none, if it breaks or is cut: then `zoo.serve.tools.Reader` has it as text, and that it had begun
cannot be taken back.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from zoo.inference.text import Cut
from zoo.serve.schema import is_text


class Call(NamedTuple):
    """A call: `arguments` is JSON as the model wrote it, `id` what the answer to it refers to."""

    name: str
    arguments: str
    id: str

    def openai(self) -> dict[str, Any]:
        """As a message has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def new_id() -> str:
    """An id for a call that has none."""
    return f"call_{secrets.token_hex(12)}"


class Delta(NamedTuple):
    """What is new of the call number `index`: more arguments, and at its beginning what it is."""

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None

    def openai(self) -> dict[str, Any]:
        """As a chunk of a stream has it."""
        if self.name is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        return {"index": self.index, **Call(self.name, self.arguments, self.id).openai()}


class Parameters(NamedTuple):
    """How the parameters of a call are written one by one.

    Attributes:
        begin: what stands before a value; with groups `key` and perhaps `text`, which is "true"
            where the value is a text. Else its schema says so.
        close: what stands behind a value.
        end: what stands behind the last parameter.
        read: JSON of what is written where that is no text, and its schema.
        lines: a line break before a value, and one behind it, is none of it.
    """

    begin: re.Pattern
    close: str
    end: re.Pattern
    read: Callable[[str, Any], str]
    lines: bool = False


class Heads(NamedTuple):
    """How calls are found before they are whole.

    Attributes:
        head: what stands from the end of the arguments before, or from the beginning of all calls,
            up to the arguments of the next call. It has a group `name` where these begin with a
            brace, else `function`; and perhaps `id`.
        close: what ends a call, if an object that are its arguments has not ended.
        parameters: of calls that have them one by one.
    """

    head: re.Pattern
    close: str = ""
    parameters: Parameters | None = None


class Teller:
    """Tells calls as they are written, one behind the other from the beginning of a text.

    From where something else stands between them, nothing is told before the end.
    """

    def __init__(self, heads: Heads | None, properties: Mapping[str, Mapping[str, Any]]):
        """Of calls that are found so; `properties` as of `zoo.serve.tools.properties`."""
        self._heads, self._properties, self._rest = heads, properties, ""
        self._arguments: _Object | _Values | None = None
        self._told: list[Call] = []
        self._new: list[Delta] = []

    def push(self, text: str) -> None:
        """Goes on by more of the text."""
        self._rest += text
        while self._heads and self._rest and (self._arguments is not None or self._begin()):
            new, behind = self._arguments.push(self._rest)
            self._add(new)
            self._rest = behind or ""
            if self._arguments.broken:
                self._heads = None
            if behind is not None:
                self._arguments = None

    def deltas(self) -> list[Delta]:
        """What is new since the last call."""
        found, self._new = self._new, []
        return found

    def end(self, calls: Sequence[Call]) -> list[Call]:
        """The calls of the whole text, by the ids that they were told by; the others are told."""
        found, told = [], list(self._told)
        for call in calls:
            place = next((i for i, one in enumerate(told) if one[:2] == call[:2]), None)
            if place is None:
                self._tell(call)
            else:
                call, told = told[place], told[place + 1 :]
            found.append(call)
        return found

    def _begin(self) -> bool:
        """Whether the rest begins with the head of a call, which is told then."""
        found = self._heads.head.match(self._rest)
        if found is None:
            return False
        groups = found.groupdict()
        name, one_by_one = groups.get("name"), groups.get("function")
        self._tell(Call(name or one_by_one, "", groups.get("id") or new_id()))
        self._rest = self._rest[found.end() :]
        if one_by_one is None:
            self._arguments = _Object(self._heads.close)
        else:
            known = self._properties.get(one_by_one, {})
            self._arguments = _Values(self._heads.parameters, known)
        return True

    def _tell(self, call: Call) -> None:
        self._new.append(Delta(len(self._told), call.arguments, call.name, call.id))
        self._told.append(call)

    def _add(self, text: str) -> None:
        if not text:
            return
        index, call = len(self._told) - 1, self._told[-1]
        self._told[-1] = call._replace(arguments=call.arguments + text)
        if self._new and self._new[-1].index == index:
            self._new[-1] = self._new[-1]._replace(arguments=self._new[-1].arguments + text)
        else:
            self._new.append(Delta(index, text))


class _Object:
    """Arguments that are written as an object of JSON.

    Attributes:
        broken: what closes the call came before their end. In a text of theirs it is none.
    """

    def __init__(self, close: str):
        self.broken, self._close, self._held = False, close, ""
        self._depth, self._quoted, self._escaped = 0, False, False

    def push(self, text: str) -> tuple[str, str | None]:
        """What is new of them, and once they are whole what stands behind them."""
        text, self._held = self._held + text, ""
        for i, letter in enumerate(text):
            if not self._quoted and letter == self._close[:1]:
                if text.startswith(self._close, i):
                    self.broken = True
                    return text[:i], None
                if self._close.startswith(text[i:]):
                    self._held = text[i:]
                    return text[:i], None
            if self._ends(letter):
                return text[: i + 1], text[i + 1 :]
        return text, None

    def _ends(self, letter: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped, self._quoted = letter == "\\", letter != '"'
        elif letter == '"':
            self._quoted = True
        else:
            self._depth += (letter in "{[") - (letter in "}]")
            return self._depth == 0
        return False


class _Values:
    """Arguments that are written as parameters, as the object of JSON that they are."""

    broken = False

    def __init__(self, how: Parameters, schemas: Mapping[str, Any]):
        self._how, self._schemas, self._rest, self._count = how, schemas, "", 0
        self._value: _Text | _Other | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """What is new of the object, and once it is whole what stands behind it."""
        self._rest, said = self._rest + text, ""
        while True:
            if self._value is not None:
                text, whole = self._cut.push(self._rest), self._cut.found is not None
                said, self._rest = said + self._value.push(text, whole), self._cut.behind
                if not whole:
                    return said, None
                self._value = None
            if end := self._how.end.match(self._rest):
                return said + ("}" if self._count else "{}"), self._rest[end.end() :]
            begin = self._how.begin.match(self._rest)
            if begin is None:
                return said, None
            said += self._begin(begin)
            self._rest = self._rest[begin.end() :]

    def _begin(self, found: re.Match) -> str:
        """What stands before a value."""
        key, kind = found["key"], found.groupdict().get("text")
        schema = self._schemas.get(key) if kind is None else None
        text = is_text(schema) if kind is None else kind == "true"
        self._value = _Text(self._how) if text else _Other(self._how, schema)
        self._cut, before = Cut((self._how.close,)), ", " if self._count else "{"
        self._count += 1
        return f"{before}{_quoted(key)}: "


class _Text:
    """A text as JSON, as it comes."""

    def __init__(self, how: Parameters):
        self._lines, self._held = how.lines, ""
        self._opened, self._begins = False, True

    def push(self, text: str, whole: bool) -> str:
        """What is new of it."""
        before, text = "" if self._opened else '"', self._held + text
        self._opened, self._held = True, ""
        if self._lines and text:
            text = text.removeprefix("\n") if self._begins else text
            self._begins = False
            if text.endswith("\n"):
                text, self._held = text[:-1], "\n"
        return before + _quoted(text)[1:-1] + ('"' if whole else "")


class _Other:
    """A value that is JSON or else a text, when it is whole."""

    def __init__(self, how: Parameters, schema: Any):
        self._how, self._schema, self._text = how, schema, ""

    def push(self, text: str, whole: bool) -> str:
        """It, or nothing."""
        self._text += text
        if not whole:
            return ""
        text = self._text
        if self._how.lines:
            text = text.removeprefix("\n").removesuffix("\n")
        return self._how.read(text, self._schema)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
