"""How each family writes calls of functions, and how they are read.

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
encoding/encoding_dsv32.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from zoo.serve.schema import encodes, is_text, no_number
from zoo.serve.telling import Call, Heads, Parameters, new_id
from zoo.serve.tools import Format, Hole, Pieces, Properties, Written

JSON = json.JSONDecoder()
NO_JSON = (ValueError, RecursionError)
"""What reading JSON raises: a model may open brackets for ever."""


def format_of(template: str) -> Format | None:
    """The format that a chat template shows calls in; None if it shows none that is known."""
    return next((form for form in FORMATS if form.shown in template), None)


def _qwen(text: str, properties: Properties) -> Pieces:
    given = r"<parameter=([^>]+)>((?:(?!<parameter=).)*?)</parameter>"

    def read(found: re.Match) -> Pieces:
        block, end = found.groups()
        function = re.fullmatch(r"\s*<function=([^>\s]+)>(.*?)(</function>\s*)?", block, re.DOTALL)
        if function is None:
            return _from_objects(block, properties, "<tool_call>")
        if not (end or function[3]):
            return []  # cut, perhaps between two parameters
        known, pairs = properties.get(function[1], {}), _all(given, function[2])
        values = {key: _value(_line(value), known.get(key)) for key, value in pairs or ()}
        return [] if pairs is None else list(_call(function[1], values))

    return _each(r"<tool_call>(.*?)(</tool_call>|\Z)", text, read)


def _line(text: str) -> str:
    """A text without the line breaks that its format puts around it."""
    return text.removeprefix("\n").removesuffix("\n")


def _value(text: str, schema: Any) -> Any:
    """A parameter as JSON if it may be and is that, else as a text."""
    if is_text(schema):
        return text
    try:
        value = json.loads(text)
    except NO_JSON:
        return text
    return text if _json(value) is None else value


def _deepseek_dsml(text: str, properties: Properties) -> Pieces:
    given = (
        r'<｜DSML｜parameter name="([^"]+)" string="(true|false)">'
        "((?:(?!<｜DSML｜parameter ).)*?)</｜DSML｜parameter>"
    )

    def read(found: re.Match) -> Pieces:
        if (parameters := _all(given, found[2])) is None:
            return []
        values = {
            key: value if kind == "true" else _value(value, None) for key, kind, value in parameters
        }
        return list(_call(found[1], values))

    invoked = r'<｜DSML｜invoke name="([^"]+)">((?:(?!<｜DSML｜invoke ).)*?)</｜DSML｜invoke>'
    return _each(invoked, text, read, "</?｜DSML｜(?:function|tool)_calls>")


def _deepseek(text: str, properties: Properties) -> Pieces:
    def read(found: re.Match) -> Pieces:
        kind, body = found.groups()
        fenced = re.fullmatch(r"(\S+)\s*```json(.*?)```", body.strip(), re.DOTALL)
        name, arguments = fenced.groups() if fenced else (kind, body)
        return list(_call(name.strip(), arguments.strip()))

    blocks = (
        r"<｜tool▁call▁begin｜>((?:(?!<｜tool▁call▁begin｜>).)*?)<｜tool▁sep｜>(.*?)"
        r"(?:<｜tool▁call▁end｜>|\Z)"
    )
    return _each(blocks, text, read, "<｜tool▁calls▁(?:begin|end)｜>")


def _kimi(text: str, properties: Properties) -> Pieces:
    def read(found: re.Match) -> Pieces:
        id, arguments = (group.strip() for group in found.groups())
        name = re.fullmatch(r"(?:functions\.)?(.+?)(?::\d+)?", id)
        return [] if name is None else list(_call(name[1], arguments, id))

    blocks = (
        r"<\|tool_call_begin\|>((?:(?!<\|tool_call_begin\|>).)*?)"
        r"<\|tool_call_argument_begin\|>(.*?)(?:<\|tool_call_end\|>|\Z)"
    )
    return _each(blocks, text, read, r"<\|tool_calls_section_(?:begin|end)\|>")


def _harmony(text: str, properties: Properties) -> Pieces:
    blocks = (
        r"(?:<\|start\|>assistant)?(?:<\|channel\|>commentary)? ?to=functions\.([^\s<]++)"
        r"(?:(?!<\|message\|>|to=functions\.).)*+<\|message\|>(.*?)(?:<\|call\|>|\Z)"
    )
    return _each(blocks, text, lambda found: list(_call(found[1], found[2].strip())))


def _mistral(text: str, properties: Properties) -> Pieces:
    def read(found: re.Match) -> Pieces:
        block = found[1]
        named = re.match(r"\s*([^\[\{\s]+)(?:\[CALL_ID\](\w+))?(?:\[ARGS\])?\s*(?=\{)", block)
        if named is None:
            return _from_objects(block, properties)
        try:
            _, end = JSON.raw_decode(block, named.end())
        except NO_JSON:
            return []
        return [*_call(named[1], block[named.end() : end], named[2]), block[end:]]

    return _each(r"\[TOOL_CALLS\](.*?)(?=\[TOOL_CALLS\]|\Z)", text, read)


def _llama(text: str, properties: Properties) -> Pieces:
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


OBJECT = (
    r'\{\s*"name"\s*:\s*"(?P<name>[^"\\\x00-\x1f]{1,256})"\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""A call as an object of JSON, up to its arguments."""

DSML = Heads(
    re.compile(
        r"\s*+(?:<｜DSML｜(?:function|tool)_calls>\s*+)?"
        r'<｜DSML｜invoke name="(?P<function>[^"]{1,256})">'
    ),
    parameters=Parameters(
        re.compile(
            r'\s*+<｜DSML｜parameter name="(?P<key>[^"]{1,256})" string="(?P<text>true|false)">'
        ),
        "</｜DSML｜parameter>",
        re.compile(r"\s*+</｜DSML｜invoke>"),
        lambda text, schema: _json(_value(text, schema)),
    ),
)
DEEPSEEK = Heads(
    re.compile(
        r"\s*+(?:```\s*+)?(?:<｜tool▁call▁end｜>\s*+)?(?:<｜tool▁calls▁begin｜>\s*+)?"
        r"<｜tool▁call▁begin｜>(?:[^<]{0,256}<｜tool▁sep｜>(?=[^\s{]))?\s*+(?P<name>[^\s<{`]{1,256})"
        r"(?:\s*```json|<｜tool▁sep｜>)\s*(?=\{)"
    ),
    "<｜tool▁call▁end｜>",
)
KIMI = Heads(
    re.compile(
        r"\s*+(?:<\|tool_call_end\|>\s*+)?(?:<\|tool_calls_section_begin\|>\s*+)?"
        r"<\|tool_call_begin\|>\s*(?P<id>(?:functions\.)?(?P<name>[^\s<]{1,256}?)(?::\d+)?)\s*"
        r"<\|tool_call_argument_begin\|>\s*(?=\{)"
    ),
    "<|tool_call_end|>",
)
HARMONY = Heads(
    re.compile(
        r"\s*+(?:<\|call\|>)?(?:<\|start\|>assistant)?(?:<\|channel\|>commentary)? ?"
        r"to=functions\.(?P<name>[^\s<]{1,256}+)(?:(?!<\|message\|>|to=functions\.)[^{]){0,256}+"
        r"<\|message\|>\s*(?=\{)"
    ),
    "<|call|>",
)
MISTRAL = Heads(
    re.compile(
        r"\s*+\[TOOL_CALLS\]\s*(?P<name>[^\[{\s]{1,256})(?:\[CALL_ID\](?P<id>\w{1,256}))?"
        r"(?:\[ARGS\])?\s*(?=\{)"
    ),
    "[TOOL_CALLS]",
)
QWEN = Heads(
    re.compile(
        r"\s*+(?:\}?\s*+</tool_call>\s*+)?<tool_call>\s*"
        rf"(?:{OBJECT}|<function=(?P<function>[^>\s]{{1,256}})>)"
    ),
    "</tool_call>",
    Parameters(
        re.compile(r"\s*+<parameter=(?P<key>[^>]{1,256})>"),
        "</parameter>",
        re.compile(r"\s*+(?:</function>|(?=</tool_call>))"),
        lambda text, schema: _json(_value(text, schema)),
        lines=True,
    ),
)
LLAMA = Heads(re.compile(r"[\s\[]*+(?:\}[\s,;\[\]]*+)?(?:<\|python_tag\|>\s*+)?" + OBJECT))
"""How calls are told while they are written.

Those with ids behind their arguments (Mistral's lists) and those of Python's form (Llama 4) are
told when the answer is whole.
"""

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
           _deepseek_dsml, _dsml_written, DSML),
    Format("<｜tool▁call▁begin｜>", ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"), _deepseek,
           _deepseek_written, DEEPSEEK),
    Format("<|tool_call_begin|>", ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"), _kimi,
           _kimi_written, KIMI),
    Format("<|channel|>commentary", ("<|channel|>commentary", " to=functions."), _harmony,
           _harmony_written, HARMONY),
    Format("[TOOL_CALLS]", ("[TOOL_CALLS]",), _mistral, _mistral_written,
           MISTRAL),
    Format("<tool_call>", ("<tool_call>",), _qwen, _qwen_written, QWEN),
    Format("ipython", ("<|python_tag|>", '{"name"', '{ "name"', "["), _llama, _llama_written,
           LLAMA, leads=True),
)  # fmt: skip
"""In the order in which a template is searched; Llama's templates have a role ipython."""


def _call(name: Any, arguments: Any, id: str | None = None) -> Iterator[Call]:
    """A call, unless its parts are not those of one: arguments are an object, or its JSON."""
    if not (isinstance(name, str) and name and encodes(name)):
        return
    if isinstance(arguments, str):
        text = arguments if _is_object(arguments) else None
    else:
        text = _json(arguments) if isinstance(arguments, dict) else None
    if text is not None:
        yield Call(name, text, id or new_id())


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
        return isinstance(json.loads(text, parse_constant=no_number), dict)
    except NO_JSON:
        return False


def _each(
    pattern: str, text: str, read: Callable[[re.Match], Pieces], around: str = "(?!)"
) -> Pieces:
    """Calls that `read` makes of what matches a pattern, and the texts that are none, in turns.

    What it makes no call of is text, and `around` between calls means nothing.
    """
    pieces: Pieces = []
    end = 0
    for found in re.finditer(pattern, text, re.DOTALL):
        made = read(found)
        if any(isinstance(piece, Call) for piece in made):
            pieces += [text[end : found.start()], *made]
            end = found.end()
    pieces.append(text[end:])
    return [p if isinstance(p, Call) else re.sub(around, "", p) for p in pieces]


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
        if isinstance(arguments, dict) and _json(arguments) is not None:
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
