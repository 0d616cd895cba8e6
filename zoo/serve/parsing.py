"""Calls in an answer that is whole, as each family writes them: see `zoo.serve.formats`.

What cannot be read as a call is text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from zoo.serve.schema import encodes, is_text, no_number
from zoo.serve.telling import Call, new_id
from zoo.serve.tools import Pieces, Properties

JSON = json.JSONDecoder()
NO_JSON = (ValueError, RecursionError)
"""What reading JSON raises: a model may open brackets for ever."""


OBJECT = (
    r'\{\s*"name"\s*:\s*"(?P<name>[^"\\\x00-\x1f]{1,256})"\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""A call as an object of JSON, up to its arguments."""


def qwen(text: str, properties: Properties) -> Pieces:
    given = r"<parameter=([^>]+)>((?:(?!<parameter=).)*?)</parameter>"
    beside = rf"(?:[\s,;\[\]]|<tool_call>|<function=[^>\s]+>|{given})*"

    def read(found: re.Match, block: str, end: str) -> Pieces:
        function = re.fullmatch(r"\s*<function=([^>\s]+)>(.*?)(</function>\s*)?", block, re.DOTALL)
        if function is None:
            return _from_objects(block, properties, "<tool_call>")
        if not (end or function[3]):
            return []  # cut, perhaps between two parameters
        known, pairs = properties.get(function[1], {}), _all(given, function[2])
        values = {key: value_of(_line(value), known.get(key)) for key, value in pairs or ()}
        return [] if pairs is None else list(_call(function[1], values))

    return _each("<tool_call>", "</tool_call>", text, read, beside)


def _line(text: str) -> str:
    """A text without the line breaks that its format puts around it."""
    return text.removeprefix("\n").removesuffix("\n")


def value_of(text: str, schema: Any) -> Any:
    """A parameter as JSON if it may be and is that, else as a text."""
    if is_text(schema):
        return text
    try:
        value = json.loads(text)
    except NO_JSON:
        return text
    return text if as_json(value) is None else value


def deepseek_dsml(text: str, properties: Properties) -> Pieces:
    given = (
        r'<｜DSML｜parameter name="([^"]+)" string="(true|false)">'
        "((?:(?!<｜DSML｜parameter ).)*?)</｜DSML｜parameter>"
    )

    def read(found: re.Match, block: str, end: str) -> Pieces:
        parameters = _all(given, block) if end else None
        values = {
            key: value if kind == "true" else value_of(value, None)
            for key, kind, value in parameters or ()
        }
        return [] if parameters is None else list(_call(found[1], values))

    begin, end = r'<｜DSML｜invoke name="([^"]+)">', "</｜DSML｜invoke>|(?=<｜DSML｜invoke )"
    around = "</?｜DSML｜(?:function|tool)_calls>"
    return _each(begin, end, text, read, rf"(?:\s|{given})*", around)


def deepseek(text: str, properties: Properties) -> Pieces:
    def read(found: re.Match, body: str, end: str) -> Pieces:
        fenced = re.fullmatch(r"(\S+)\s*```json(.*?)```", body.strip(), re.DOTALL)
        name, arguments = fenced.groups() if fenced else (found[1], body)
        return list(_call(name.strip(), arguments.strip()))

    begin = r"<｜tool▁call▁begin｜>((?:(?!<｜tool▁call▁begin｜>).)*?)<｜tool▁sep｜>"
    beside, around = r"\s*(?:[^\s`{]+\s*```json)?\s*", "<｜tool▁calls▁(?:begin|end)｜>"
    return _each(begin, "<｜tool▁call▁end｜>", text, read, beside, around)


def kimi(text: str, properties: Properties) -> Pieces:
    def read(found: re.Match, arguments: str, end: str) -> Pieces:
        id = found[1].strip()
        name = re.fullmatch(r"(?:functions\.)?(.+?)(?::\d+)?", id)
        return [] if name is None else list(_call(name[1], arguments.strip(), id))

    begin = r"<\|tool_call_begin\|>((?:(?!<\|tool_call_begin\|>).)*?)<\|tool_call_argument_begin\|>"
    around = r"<\|tool_calls_section_(?:begin|end)\|>"
    return _each(begin, r"<\|tool_call_end\|>", text, read, around=around)


def harmony(text: str, properties: Properties) -> Pieces:
    def read(found: re.Match, arguments: str, end: str) -> Pieces:
        return list(_call(found[1], arguments.strip()))

    begin = (
        r"(?:<\|start\|>assistant)?(?:<\|channel\|>commentary)? ?to=functions\.([^\s<]++)"
        r"(?:(?!<\|message\|>|to=functions\.).)*+<\|message\|>"
    )
    return _each(begin, r"<\|call\|>", text, read)


def mistral(text: str, properties: Properties) -> Pieces:
    name = r"\s*([^\[\{\s]++)(?:\[CALL_ID\](\w+))?(?:\[ARGS\])?\s*(?=\{)"

    def read(found: re.Match, block: str, end: str) -> Pieces:
        named = re.match(name, block)
        if named is None:
            return _from_objects(block, properties)
        try:
            _, end = JSON.raw_decode(block, named.end())
        except NO_JSON:
            return []
        return [*_call(named[1], block[named.end() : end], named[2]), block[end:]]

    begin, end = r"\[TOOL_CALLS\]", r"(?=\[TOOL_CALLS\])"
    return _each(begin, end, text, read, rf"(?:{name}|[\s,;\[\]]*(?=\{{))?")


def llama(text: str, properties: Properties) -> Pieces:
    text = text.strip().removeprefix("<|python_tag|>").strip()
    if re.match(r"\[\s*[A-Za-z_]", text):
        end = _list_end(text)
        return [*_pythonic(text[:end]), text[end:]]
    return _from_objects(text, properties)


def _list_end(text: str) -> int:
    """Where a list ends that a text begins with."""
    depth = 0
    for found in re.finditer(rf"{QUOTED}|(?P<open>[\[({{])|(?P<close>[\])}}])", text, re.DOTALL):
        depth += (found["open"] is not None) - (found["close"] is not None)
        if depth == 0:
            return found.end()
    return len(text)


def _pythonic(text: str) -> list[Call]:
    """[f(a=1), g(b="x")]; values are literals, JSON's names of some too; nothing is evaluated.

    Names of functions and parameters may be none of Python's: they are numbered while it reads.
    """
    calls: list[Call] = []
    names: dict[str, str] = {}

    def numbered(found: re.Match) -> str:
        if found["name"] is None:
            return found[0]
        names[number := f"_{len(names)}"] = found["name"]
        return number

    try:
        (expression,) = ast.parse(NAMED_OR_QUOTED.sub(numbered, text.strip())).body
        for call in expression.value.elts:
            arguments = {names[word.arg]: _literal(word.value) for word in call.keywords}
            if call.args or not (read := list(_call(names[call.func.id], arguments))):
                return []
            calls += read
    except (SyntaxError, ValueError, AttributeError, TypeError, KeyError, RecursionError,
            MemoryError):  # fmt: skip
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
QUOTED = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
NAMED_OR_QUOTED = re.compile(
    rf"""
    {QUOTED}
    | (?<! [^\s"'()\[\]{{}},=] ) (?P<name> [^\s"'()\[\]{{}},=]++ ) (?= \s* [(=] )
    """,
    re.VERBOSE | re.DOTALL,
)
"""A text in quotes, or a name before what is called or given by it."""


def _call(name: Any, arguments: Any, id: str | None = None) -> Iterator[Call]:
    """A call, unless its parts are not those of one: arguments are an object, or its JSON."""
    if not (isinstance(name, str) and name and encodes(name)):
        return
    if isinstance(arguments, str):
        text = arguments if _is_object(arguments) else None
    else:
        text = as_json(arguments) if isinstance(arguments, dict) else None
    if text is not None:
        yield Call(name, text, id or new_id())


def as_json(value: Any) -> str | None:
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
        return isinstance(json.loads(text, parse_constant=no_number), dict)
    except NO_JSON:
        return False


def _each(
    begin: str,
    end: str,
    text: str,
    read: Callable[[re.Match, str, str], Pieces],
    beside: str = r"\s*",
    around: str = "(?!)",
) -> Pieces:
    """Calls that `read` makes of blocks in a text, and the texts that are none, in turns.

    Args:
        begin: what a block begins with.
        end: what it ends with, if not with the text. In an object of JSON that is whole, or in what
            `beside` has whole, it is a text like any other.
        text: to read.
        read: takes the match of `begin`, the block between, and its `end`, empty where that is
            missing. What it makes no call of is text.
        beside: what can stand before an object.
        around: what between calls means nothing.
    """
    pieces: Pieces = []
    closing = re.compile(rf"{end}|\Z")
    last = place = 0
    while found := re.compile(begin, re.DOTALL).search(text, place):
        closed = closing.search(text, _behind_objects(text, found.end(), beside))
        place = closed.end()
        made = read(found, text[found.end() : closed.start()], closed[0])
        if any(isinstance(piece, Call) for piece in made):
            pieces += [text[last : found.start()], *made]
            last = place
    pieces.append(text[last:])
    return [p if isinstance(p, Call) else re.sub(around, "", p) for p in pieces]


def _behind_objects(text: str, place: int, beside: str) -> int:
    """Where objects of JSON end that begin at a place, and what stands before each."""
    before = re.compile(beside, re.DOTALL)
    while True:
        place = before.match(text, place).end()
        if not text.startswith("{", place):
            return place
        try:
            _, place = JSON.raw_decode(text, place)
        except NO_JSON:
            return place


def _all(pattern: str, text: str) -> list[tuple[str, ...]] | None:
    """The groups of all matches; None if they leave more than white space."""
    rest = re.sub(pattern, "", text, flags=re.DOTALL)
    return None if rest.strip() else re.findall(pattern, text, re.DOTALL)


def _from_objects(text: str, properties: Properties, around: str = "(?!)") -> Pieces:
    """{"name": ..., "arguments" or "parameters": ..., "id"?: ...}, one or several, or a list.

    It is text from where one is damaged; `around` as for `_each`.
    """
    pieces: Pieces = []
    end = place = 0
    while (start := text.find("{", place)) >= 0:
        try:
            value, place = JSON.raw_decode(text, start)
        except NO_JSON:
            break
        name, id = value.get("name"), value.get("id")
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, dict) and as_json(arguments) is not None:
            arguments = _as_written(text[start:place]) or arguments
        if arguments is None and isinstance(name, str) and name in properties:
            arguments = {}
        if calls := list(_call(name, arguments, id if isinstance(id, str) else None)):
            pieces += [text[end:start], *calls]
            end = place
    pieces.append(text[end:])
    between = rf"(?:[\s,;\[\]]|{around})*"
    return [p for p in pieces if isinstance(p, Call) or not re.fullmatch(between, p)]


def _as_written(text: str) -> str | None:
    """The arguments of a call, an object of JSON, where nothing stands behind them; else None."""
    head = re.match(OBJECT, text)
    if head is None:
        return None
    _, end = JSON.raw_decode(text, head.end())
    return text[head.end() : end] if text[end:-1].isspace() or end == len(text) - 1 else None
