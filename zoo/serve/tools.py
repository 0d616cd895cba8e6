"""Calls of functions in a model's answer, from how each family writes them to OpenAI's form.

Which format a folder's model writes is told by its chat template, which shows earlier calls in it:

    DeepSeek V3    <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\\n```json\\n{...}\\n```
             V3.1  <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}
             V3.2  <｜DSML｜invoke name="NAME"><｜DSML｜parameter name="KEY" string="true">...
    Kimi K2        <|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}
    Mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}], [TOOL_CALLS]NAME[ARGS]{...}
    Qwen           <tool_call>{"name": ..., "arguments": {...}}</tool_call>, and
      Qwen3-Coder  <tool_call><function=NAME><parameter=KEY>...</parameter></function></tool_call>
    gpt-oss        <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}
    Llama 3        {"name": ..., "parameters": {...}}, perhaps after <|python_tag|>
    Llama 4        [NAME(KEY=VALUE, ...), ...]

The source is the templates of these models; V3.2's folder has none, and shows its format in
encoding/encoding_dsv32.py. What cannot be read as a call stays text. `calling` has grammars that
let a model write nothing else, made of the same table.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from zoo.inference.text import Cut
from zoo.serve.schema import encodes

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
        parse: the calls in the text from there on; properties of the functions' parameters by
            name tell texts from other values where a model writes both without quotes.
        written: how a model with this template writes calls.
        leads: whether `opens` counts at the beginning of an answer only.
    """

    shown: str
    opens: tuple[str, ...]
    parse: Callable[[str, Properties], list[Call]]
    written: Callable[[str], Written]
    leads: bool = False


Properties = Mapping[str, Mapping[str, Any]]


def format_of(template: str) -> Format | None:
    """The format that a chat template shows calls in; None if it shows none that is known."""
    return next((form for form in FORMATS if form.shown in template), None)


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
        calls = self._form.parse(rest, self._properties) if rest else []
        return ("", calls) if calls else (rest, [])


def _call(name: Any, arguments: Any, id: str | None = None) -> Iterator[Call]:
    """A call, unless its parts are not of the types that one has."""
    if isinstance(name, str) and name and encodes(name) and isinstance(arguments, str | dict):
        text = arguments if isinstance(arguments, str) else _json(arguments)
        yield from [] if text is None else [Call(name, text, id or f"call_{secrets.token_hex(12)}")]


def _json(value: Any) -> str | None:
    """A value as JSON, unless it has numbers that JSON has not.

    Half a surrogate pair, which JSON can write and UTF-8 cannot, stays an escape.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return None
    return text if encodes(text) else json.dumps(value)


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


def _from_objects(text: str, properties: Properties | None = None) -> list[Call]:
    """{"name": ..., "arguments" or "parameters": ..., "id"?: ...}, one or several, or a list."""
    calls: list[Call] = []
    for value in _objects(text):
        if isinstance(value, dict):
            arguments = value.get("arguments", value.get("parameters", {}))
            id = value.get("id")
            calls += _call(value.get("name"), arguments, id if isinstance(id, str) else None)
    return calls


def _qwen(text: str, properties: Properties) -> list[Call]:
    calls: list[Call] = []
    for block in re.findall(r"<tool_call>(.*?)(?:</tool_call>|\Z)", text, re.DOTALL):
        function = re.search(r"<function=([^>\s]+)>(.*)", block, re.DOTALL)
        if function is None:
            calls += _from_objects(block)
            continue
        known = properties.get(function[1], {})
        pairs = re.findall(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>", function[2], re.DOTALL)
        calls += _call(function[1], {key: _value(value, known.get(key)) for key, value in pairs})
    return calls


def is_text(schema: Any) -> bool:
    """Whether a parameter's schema lets it be a text and nothing else."""
    if not isinstance(schema, Mapping):
        return False
    enum = schema.get("enum")
    if isinstance(enum, list) and enum:
        return all(isinstance(value, str) for value in enum)
    return schema.get("type") == "string"


def _value(text: str, schema: Any) -> Any:
    """A parameter as JSON if it may be and is that, else as a text."""
    if is_text(schema):
        return text
    try:
        return json.loads(text)
    except NO_JSON:
        return text


def _deepseek_dsml(text: str, properties: Properties) -> list[Call]:
    calls: list[Call] = []
    invoked = r'<｜DSML｜invoke name="([^"]+)">(.*?)(?:</｜DSML｜invoke>|\Z)'
    given = r'<｜DSML｜parameter name="([^"]+)" string="(true|false)">(.*?)</｜DSML｜parameter>'
    for name, body in re.findall(invoked, text, re.DOTALL):
        found = {
            key: value if kind == "true" else _value(value, None)
            for key, kind, value in re.findall(given, body, re.DOTALL)
        }
        calls += _call(name, found)
    return calls


def _deepseek(text: str, properties: Properties) -> list[Call]:
    calls: list[Call] = []
    blocks = r"<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)(?:<｜tool▁call▁end｜>|\Z)"
    for kind, body in re.findall(blocks, text, re.DOTALL):
        fenced = re.fullmatch(r"\s*(\S+)\s*```json\s*(.*?)\s*```\s*", body, re.DOTALL)
        name, arguments = (fenced[1], fenced[2]) if fenced else (kind.strip(), body.strip())
        if _is_object(arguments):
            calls += _call(name, arguments)
    return calls


def _kimi(text: str, properties: Properties) -> list[Call]:
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


def _harmony(text: str, properties: Properties) -> list[Call]:
    calls: list[Call] = []
    blocks = r"to=functions\.([^\s<]+)(?:(?!<\|message\|>).)*<\|message\|>(.*?)(?:<\|call\|>|\Z)"
    for name, arguments in re.findall(blocks, text, re.DOTALL):
        if _is_object(arguments):
            calls += _call(name, arguments)
    return calls


def _mistral(text: str, properties: Properties) -> list[Call]:
    calls: list[Call] = []
    for block in text.split("[TOOL_CALLS]")[1:]:
        named = re.fullmatch(r"\s*([^\[\{\s]+)(?:\[CALL_ID\](\w+))?(?:\[ARGS\])?\s*(\{.*\})\s*",
                             block, re.DOTALL)  # fmt: skip
        if named is None:
            calls += _from_objects(block)
        elif _is_object(named[3]):
            calls += _call(named[1], named[3], named[2])
    return calls


def _llama(text: str, properties: Properties) -> list[Call]:
    text = text.strip().removeprefix("<|python_tag|>").strip()
    return _pythonic(text) if re.match(r"\[\s*[A-Za-z_]", text) else _from_objects(text)


def _pythonic(text: str) -> list[Call]:
    """[f(a=1), g(b="x")]; values are literals, JSON's names of some too; nothing is evaluated."""
    calls: list[Call] = []
    try:
        (expression,) = ast.parse(text.strip()).body
        for call in expression.value.elts:
            arguments = {word.arg: _literal(word.value) for word in call.keywords}
            if call.args or None in arguments:
                return []
            calls += _call(ast.unparse(call.func), arguments)
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        return []
    return calls


def _literal(node: ast.expr) -> Any:
    """Of a value that JSON can have."""
    for name in ast.walk(node):
        if isinstance(name, ast.Name) and name.id in NAMES:
            name.id = NAMES[name.id]
    value = ast.literal_eval(ast.unparse(node))
    json.dumps(value)
    return value


NAMES = {"true": "True", "false": "False", "null": "None"}
"""JSON's names, as Python has them."""


NAMED = Written(('{"name": "', Hole.NAME, '", "arguments": ', Hole.ARGUMENTS, "}"))


def _deepseek_written(template: str) -> Written:
    fenced = "```json" in template
    kind = ("function<｜tool▁sep｜>", Hole.NAME, "\n```json\n", Hole.ARGUMENTS, "\n```")
    call = kind if fenced else (Hole.NAME, "<｜tool▁sep｜>", Hole.ARGUMENTS)
    return Written(
        ("<｜tool▁call▁begin｜>", *call, "<｜tool▁call▁end｜>"), "<｜tool▁calls▁begin｜>",
        "\n" if fenced else "", "<｜tool▁calls▁end｜>",
    )  # fmt: skip


def _dsml_written(template: str) -> Written:
    kind = "function_calls" if "function_calls" in template else "tool_calls"
    begin, end = '<｜DSML｜parameter name="', "</｜DSML｜parameter>\n"
    return Written(
        ('<｜DSML｜invoke name="', Hole.NAME, '">\n', Hole.PARAMETERS, "</｜DSML｜invoke>\n"),
        f"<｜DSML｜{kind}>\n",
        end=f"</｜DSML｜{kind}>",
        parameter=(begin, Hole.KEY, '" string="false">', Hole.VALUE, end),
        text=(begin, Hole.KEY, '" string="true">', Hole.TEXT, end),
    )


def _kimi_written(template: str) -> Written:
    call = ("<|tool_call_begin|>functions.", Hole.NAME, ":", Hole.COUNT,
            "<|tool_call_argument_begin|>", Hole.ARGUMENTS, "<|tool_call_end|>")  # fmt: skip
    return Written(call, "<|tool_calls_section_begin|>", end="<|tool_calls_section_end|>")


def _harmony_written(template: str) -> Written:
    call = ("<|channel|>commentary to=functions.", Hole.NAME, " <|constrain|>json<|message|>",
            Hole.ARGUMENTS)  # fmt: skip
    return Written(call, several=False)  # <|call|> ends an answer


def _mistral_written(template: str) -> Written:
    if "[ARGS]" in template:
        return Written(("[TOOL_CALLS]", Hole.NAME, "[ARGS]", Hole.ARGUMENTS))
    return Written(NAMED.call, "[TOOL_CALLS][", ", ", "]")


def _qwen_written(template: str) -> Written:
    if "<function=" not in template:
        return Written(("<tool_call>\n", *NAMED.call, "\n</tool_call>"), between="\n")
    begin, end = ("<parameter=", Hole.KEY, ">\n"), "\n</parameter>\n"
    return Written(
        ("<tool_call>\n<function=", Hole.NAME, ">\n", Hole.PARAMETERS, "</function>\n</tool_call>"),
        between="\n",
        parameter=(*begin, Hole.VALUE, end),
        text=(*begin, Hole.TEXT, end),
    )


def _llama_written(template: str) -> Written:
    if "[func_name" not in template:  # "only single tool-calls at once", Llama's templates say
        call = ('{"name": "', Hole.NAME, '", "parameters": ', Hole.ARGUMENTS, "}")
        return Written(call, several=False)
    call, parameter = (Hole.NAME, "(", Hole.PARAMETERS, ")"), (Hole.KEY, "=", Hole.VALUE)
    return Written(call, "[", ", ", "]", parameter=parameter, comma=", ")


FORMATS = (
    Format("｜DSML｜", ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>", "<｜DSML｜invoke"),
           _deepseek_dsml, _dsml_written),
    Format("<｜tool▁call▁begin｜>", ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"), _deepseek,
           _deepseek_written),
    Format("<|tool_call_begin|>", ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"), _kimi,
           _kimi_written),
    Format("<|channel|>commentary", ("<|channel|>commentary", " to=functions."), _harmony,
           _harmony_written),
    Format("[TOOL_CALLS]", ("[TOOL_CALLS]",), _mistral, _mistral_written),
    Format("<tool_call>", ("<tool_call>",), _qwen, _qwen_written),
    Format("ipython", ("<|python_tag|>", '{"name"', '{ "name"', "["), _llama, _llama_written,
           leads=True),
)  # fmt: skip
"""In the order in which a template is searched; Llama's templates have a role ipython."""
