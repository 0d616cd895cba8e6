"""Calls of functions in a model's answer, from how each family writes them to OpenAI's form.

Which families write in which way is in `formats`. What cannot be read as a call stays text.
`calling` has grammars that let a model write nothing else, made of the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from zoo.inference.text import Cut
from zoo.serve.telling import Call, Delta, Heads, Teller

Pieces = list[Call | str]
"""Calls, and the texts that are none."""


class Hole(Enum):
    """What differs from call to call; `PARAMETERS` are written one by one, each in its own way."""

    NAME = "the function's name"
    COUNT = "calls before this one"
    ARGUMENTS = "a JSON object"
    PARAMETERS = "keys and values"
    KEY = "a parameter's name"
    VALUE = "its value in JSON"
    TEXT = "its value if that is a text, up to what stands behind it"


Parts = tuple[str | Hole, ...]


@dataclass(frozen=True)
class Written:
    """How a model writes calls: `begin`, the calls with `between` between them, `end`.

    Attributes:
        call: a call.
        parameter: a parameter, if calls have them one by one.
        text: one that is a text, if that is written without quotes; else as any other.
        comma: between parameters.
        several: whether there may be more than one call.
    """

    call: Parts
    begin: str = ""
    between: str = ""
    end: str = ""
    parameter: Parts = ()
    text: Parts = ()
    comma: str = ""
    several: bool = True


@dataclass(frozen=True)
class Format:
    """How calls are read and written.

    Attributes:
        shown: text in a chat template that tells the format.
        opens: what calls begin with; the text before it is for the reader.
        parse: the calls in the text from there on, and what of it is none; properties of the
            functions' parameters by name tell texts from other values where a model writes both
            without quotes.
        written: how a model with this template writes calls.
        heads: how calls are told before they are whole, where that can be.
        leads: whether `opens` counts at the beginning of an answer only.
    """

    shown: str
    opens: tuple[str, ...]
    parse: Callable[[str, Properties], Pieces]
    written: Callable[[str], Written]
    heads: Heads | None = None
    leads: bool = False


Properties = Mapping[str, Mapping[str, Any]]


def properties(tools: Sequence[Mapping]) -> Properties:
    """What each function's parameters may be: JSON schemas by name of function and parameter."""
    functions = [tool["function"] for tool in tools]
    known = {f["name"]: (f.get("parameters") or {}).get("properties") for f in functions}
    return {
        name: {key: said for key, said in found.items() if isinstance(said, dict)}
        if isinstance(found, dict)
        else {}
        for name, found in known.items()
    }


class Reader:
    """Splits an answer, as it comes, into text to show and calls."""

    def __init__(self, form: Format, properties: Properties | None = None):
        self._form, self._cut, self._all, self._shown = form, Cut(form.opens), "", ""
        self._properties = properties or {}
        self._opened, self._teller = False, Teller(form.heads, self._properties)

    def push(self, text: str) -> str:
        """What of the text is certainly no call."""
        self._all += text
        if self._opened:
            self._teller.push(text)
            return ""
        new = self._before(text)
        self._shown += new
        if self._opened:
            self._teller.push(self._all[len(self._shown) :])
        return new

    def deltas(self) -> list[Delta]:
        """What is new of the calls since the last time; once the text has ended, all the rest."""
        return self._teller.deltas()

    def end(self) -> tuple[str, list[Call]]:
        """The rest of the text to show, and the calls.

        A call that had begun in `deltas` and is none in the end is in the text.
        """
        rest = self._all[len(self._shown) :]
        pieces = self._form.parse(rest, self._properties) if rest else []
        calls = self._teller.end([piece for piece in pieces if isinstance(piece, Call)])
        if calls:
            rest = "".join(piece for piece in pieces if isinstance(piece, str))
        return (rest if rest.strip() or not calls else ""), calls

    def _before(self, text: str) -> str:
        """What of the text stands before what opens calls."""
        if not self._form.leads:
            new = self._cut.push(text)
            self._opened = self._cut.found is not None
            return new
        start, opens = self._all.lstrip(), self._form.opens
        self._opened = start.startswith(opens)
        waits = not start or any(opening.startswith(start) for opening in opens)
        return "" if self._opened or waits else self._all[len(self._shown) :]
