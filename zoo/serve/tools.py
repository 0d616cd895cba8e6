"""Calls of functions in a model's answer, from how each family writes them to OpenAI's form.

Which format a folder's model writes is told by its chat template, which shows earlier calls in it:

    DeepSeek V3    <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\\n```json\\n{...}\\n```
             V3.1  <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}
    Kimi K2        <|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}
    Mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}], [TOOL_CALLS]NAME[ARGS]{...}
    Qwen           <tool_call>{"name": ..., "arguments": {...}}</tool_call>, and
      Qwen3-Coder  <tool_call><function=NAME><parameter=KEY>...</parameter></function></tool_call>
    Llama 3        {"name": ..., "parameters": {...}}, perhaps after <|python_tag|>
    Llama 4        [NAME(KEY=VALUE, ...), ...]

The source is the templates of these models. What cannot be read as a call stays text.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from zoo.inference.text import Cut

JSON = json.JSONDecoder()
NO_JSON = (ValueError, RecursionError)
"""What reading JSON raises: a model may open brackets for ever."""


class Call(NamedTuple):
    """A call: `arguments` is JSON as the model wrote it, `id` what the answer to it refers to."""

    name: str
    arguments: str
    id: str

    def openai(self) -> dict[str, Any]:
        """As a message has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Format:
    """How calls are written.

    Attributes:
        shown: text in a chat template that tells the format.
        opens: what calls begin with; the text before it is for the reader.
        leads: whether `opens` counts at the beginning of an answer only.
        parse: the calls in the text from there on.
    """

    shown: str
    opens: tuple[str, ...]
    parse: Callable[[str], list[Call]]
    leads: bool = False


def format_of(template: str) -> Format | None:
    """The format that a chat template shows calls in; None if it shows none that is known."""
    return next((form for form in FORMATS if form.shown in template), None)


class Reader:
    """Splits an answer, as it comes, into text to show and calls."""

    def __init__(self, form: Format):
        self._form, self._cut, self._all, self._shown = form, Cut(form.opens), "", ""

    def push(self, text: str) -> str:
        """What of the text is certainly no call."""
        self._all += text
        if self._form.leads:
            start = self._all.lstrip()
            opens = self._form.opens
            if not start or any(o.startswith(start) or start.startswith(o) for o in opens):
                return ""
            new = self._all[len(self._shown) :]
        else:
            new = self._cut.push(text)
        self._shown += new
        return new

    def end(self) -> tuple[str, list[Call]]:
        """The rest of the text to show, and the calls."""
        rest = self._all[len(self._shown) :]
        calls = self._form.parse(rest) if rest else []
        return ("", calls) if calls else (rest, [])


def _call(name: Any, arguments: Any, id: str | None = None) -> Iterator[Call]:
    """A call, unless its parts are not of the types that one has."""
    if isinstance(name, str) and name and isinstance(arguments, str | dict):
        text = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        yield Call(name, text, id or f"call_{secrets.token_hex(12)}")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except NO_JSON:
        return False


def _objects(text: str) -> Iterator[Any]:
    """The JSON values in a text, whatever stands between them; stops where one is damaged."""
    place = 0
    while (found := re.compile(r"[\[{]").search(text, place)) is not None:
        try:
            value, place = JSON.raw_decode(text, found.start())
        except NO_JSON:
            return
        yield from value if isinstance(value, list) else [value]


def _from_objects(text: str) -> list[Call]:
    """{"name": ..., "arguments" or "parameters": ..., "id"?: ...}, one or several, or a list."""
    calls: list[Call] = []
    for value in _objects(text):
        if isinstance(value, dict):
            arguments = value.get("arguments", value.get("parameters", {}))
            id = value.get("id")
            calls += _call(value.get("name"), arguments, id if isinstance(id, str) else None)
    return calls


def _qwen(text: str) -> list[Call]:
    calls: list[Call] = []
    for block in re.findall(r"<tool_call>(.*?)(?:</tool_call>|\Z)", text, re.DOTALL):
        function = re.search(r"<function=([^>\s]+)>(.*)", block, re.DOTALL)
        if function is None:
            calls += _from_objects(block)
            continue
        pairs = re.findall(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>", function[2], re.DOTALL)
        calls += _call(function[1], {key: _value(value) for key, value in pairs})
    return calls


def _value(text: str) -> Any:
    """A parameter as JSON if it is that, else as a text."""
    try:
        return json.loads(text)
    except NO_JSON:
        return text


def _deepseek(text: str) -> list[Call]:
    calls: list[Call] = []
    blocks = r"<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)(?:<｜tool▁call▁end｜>|\Z)"
    for kind, body in re.findall(blocks, text, re.DOTALL):
        fenced = re.fullmatch(r"\s*(\S+)\s*```json\s*(.*?)\s*```\s*", body, re.DOTALL)
        name, arguments = (fenced[1], fenced[2]) if fenced else (kind.strip(), body.strip())
        if _is_object(arguments):
            calls += _call(name, arguments)
    return calls


def _kimi(text: str) -> list[Call]:
    calls: list[Call] = []
    blocks = (
        r"<\|tool_call_begin\|>\s*(.*?)\s*<\|tool_call_argument_begin\|>\s*(.*?)\s*"
        r"(?:<\|tool_call_end\|>|\Z)"
    )
    for id, arguments in re.findall(blocks, text, re.DOTALL):
        name = re.fullmatch(r"(?:functions\.)?(.+?)(?::\d+)?", id)
        if name is not None and _is_object(arguments):
            calls += _call(name[1], arguments, id)
    return calls


def _mistral(text: str) -> list[Call]:
    calls: list[Call] = []
    for block in text.split("[TOOL_CALLS]")[1:]:
        named = re.fullmatch(r"\s*([^\[\{\s]+)(?:\[CALL_ID\](\w+))?(?:\[ARGS\])?\s*(\{.*\})\s*",
                             block, re.DOTALL)  # fmt: skip
        if named is None:
            calls += _from_objects(block)
        elif _is_object(named[3]):
            calls += _call(named[1], named[3], named[2])
    return calls


def _llama(text: str) -> list[Call]:
    text = text.strip().removeprefix("<|python_tag|>").strip()
    return _pythonic(text) if re.match(r"\[\s*[A-Za-z_]", text) else _from_objects(text)


def _pythonic(text: str) -> list[Call]:
    """[f(a=1), g(b="x")]; values are literals, nothing is evaluated."""
    calls: list[Call] = []
    try:
        (expression,) = ast.parse(text.strip()).body
        for call in expression.value.elts:
            arguments = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
            if call.args or None in arguments:
                return []
            calls += _call(ast.unparse(call.func), json.dumps(arguments, ensure_ascii=False))
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        return []
    return calls


FORMATS = (
    Format("<｜tool▁call▁begin｜>", ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"), _deepseek),
    Format("<|tool_call_begin|>", ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"), _kimi),
    Format("[TOOL_CALLS]", ("[TOOL_CALLS]",), _mistral),
    Format("<tool_call>", ("<tool_call>",), _qwen),
    Format("ipython", ("<|python_tag|>", '{"name"', '{ "name"', "["), _llama, leads=True),
)
"""In the order in which a template is searched; Llama's templates have a role ipython."""
