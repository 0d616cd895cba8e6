"""How each family writes calls of functions, and how they are told while they are written.

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

import re

from zoo.serve import parsing
from zoo.serve.parsing import OBJECT
from zoo.serve.telling import Heads, Parameters
from zoo.serve.tools import Format, Hole, Written


def format_of(template: str) -> Format | None:
    """The format that a chat template shows calls in; None if it shows none that is known."""
    return next((form for form in FORMATS if form.shown in template), None)


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
        lambda text, schema: parsing.as_json(parsing.value_of(text, schema)),
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
        lambda text, schema: parsing.as_json(parsing.value_of(text, schema)),
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
           parsing.deepseek_dsml, _dsml_written, DSML),
    Format("<｜tool▁call▁begin｜>", ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
           parsing.deepseek, _deepseek_written, DEEPSEEK),
    Format("<|tool_call_begin|>", ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
           parsing.kimi, _kimi_written, KIMI),
    Format("<|channel|>commentary", ("<|channel|>commentary", " to=functions."),
           parsing.harmony, _harmony_written, HARMONY),
    Format("[TOOL_CALLS]", ("[TOOL_CALLS]",), parsing.mistral, _mistral_written, MISTRAL),
    Format("<tool_call>", ("<tool_call>",), parsing.qwen, _qwen_written, QWEN),
    Format("ipython", ("<|python_tag|>", '{"name"', '{ "name"', "["), parsing.llama,
           _llama_written, LLAMA, leads=True),
)  # fmt: skip
"""In the order in which a template is searched; Llama's templates have a role ipython."""
