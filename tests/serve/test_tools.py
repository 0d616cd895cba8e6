"""Calls in each family's way of writing, whole and in pieces."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.hf import conversations
from tests.inference.test_talk import TEMPLATE
from tests.serve.conftest import LIMITS, gated, served
from tests.serve.test_api import HI
from zoo.hf.template import Template
from zoo.serve.tools import FORMATS, Reader, format_of, properties

WEATHER, TIME = ("weather", {"city": "Zürich", "days": 2}), ("time", {})
ARGUMENTS = '{"city": "Zürich", "days": 2}'
DSML, DEEPSEEK, KIMI, HARMONY, MISTRAL, QWEN, LLAMA = FORMATS

WRITTEN = {
    "deepseek v3.2": (
        DSML,
        "</think>Let me see.\n\n",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
        '<｜DSML｜parameter name="city" string="true">Zürich</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="time">\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
    ),
    "deepseek v3": (
        DEEPSEEK,
        "Let me see.",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        f"{ARGUMENTS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n"
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek v3.1": (
        DEEPSEEK,
        "",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ARGUMENTS}"
        "<｜tool▁call▁end｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
    ),
    "kimi": (
        KIMI,
        "I look it up.",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        f"<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|><|tool_call_begin|>"
        "functions.time:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
    ),
    "gpt-oss": (
        HARMONY,
        "",
        f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}"
        "<|call|><|start|>assistant to=functions.time<|channel|>commentary json<|message|>{}",
    ),
    "mistral": (
        MISTRAL,
        "",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {ARGUMENTS}, "id": "abcdefghi"}}, '
        '{"name": "time", "arguments": {}}]',
    ),
    "mistral v11": (
        MISTRAL,
        "Hm. ",
        f"[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{ARGUMENTS}[TOOL_CALLS]time[ARGS]{{}}",
    ),
    "qwen": (
        QWEN,
        "<think>a < b</think>\n\n",
        f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    ),
    "qwen coder": (
        QWEN,
        "",
        "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=time>\n</function>\n</tool_call>",
    ),
    "llama 3": (
        LLAMA,
        "",
        f'<|python_tag|>{{"name": "weather", "parameters": {ARGUMENTS}}}; '
        '{"name": "time", "parameters": {}}',
    ),
    "llama 3 bare": (
        LLAMA,
        "",
        f'{{"name": "weather", "parameters": {ARGUMENTS}}}\n{{"name": "time", "parameters": {{}}}}',
    ),
    "llama 4": (LLAMA, "", '[weather(city="Zürich", days=2), time()]'),
}


def read(form, text: str, size: int):
    """What a reader shows before the end and after it, and the calls."""
    reader = Reader(form)
    shown = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
    rest, calls = reader.end()
    return shown, rest, calls


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("kind", WRITTEN)
def test_calls_are_read_and_the_text_before_them_is_shown(kind, size):
    form, before, written = WRITTEN[kind]
    shown, rest, calls = read(form, before + written, size)
    assert (shown, rest) == (before, "")
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [WEATHER, TIME]
    assert len({call.id for call in calls}) == 2


def test_a_text_that_looks_like_json_is_one_where_the_function_takes_texts():
    """Qwen3-Coder quotes nothing; DeepSeek says which is which."""
    given = properties(
        [
            {
                "function": {
                    "name": "f",
                    "parameters": {
                        "properties": {
                            "a": {"type": "string"},
                            "b": {"enum": ["1", "2"]},
                            "c": {"type": "integer"},
                            "d": 7,
                        }
                    },
                }
            }
        ]
    )
    coder = "".join(f"<parameter={key}>\n1\n</parameter>\n" for key in "abcd")
    (call,) = QWEN.parse(f"<tool_call><function=f>\n{coder}</function></tool_call>", given)
    assert json.loads(call.arguments) == {"a": "1", "b": "1", "c": 1, "d": 1}
    kinds = (("true", "1"), ("false", "1"), ("false", "[true, null]"), ("false", "no JSON"))
    dsml = "".join(f'<｜DSML｜parameter name="{i}" string="{kind}">{text}</｜DSML｜parameter>'
                   for i, (kind, text) in enumerate(kinds))  # fmt: skip
    (call,) = DSML.parse(f'<｜DSML｜invoke name="f">{dsml}', {})
    assert json.loads(call.arguments) == {"0": "1", "1": 1, "2": [True, None], "3": "no JSON"}


def test_arguments_are_json_that_can_be_sent():
    (call,) = LLAMA.parse('[f(a=true, b=[None, null], c={"d": false}, e="\\ud800")]', {})
    assert json.loads(call.arguments) == {
        "a": True,
        "b": [None] * 2,
        "c": {"d": False},
        "e": "\ud800",
    }
    assert call.arguments.isascii()
    (call,) = QWEN.parse('<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}', {})
    assert call.arguments == r'{"a": "\ud800"}'
    for name, value in ((r"\ud800", "1"), ("f", "NaN"), ("f", "1e999")):
        text = f'<tool_call>{{"name": "{name}", "arguments": {{"a": {value}}}}}'
        assert QWEN.parse(text, {}) == []


def test_ids_that_a_model_gives_are_kept():
    for kind, id in (("kimi", "functions.weather:0"), ("mistral", "abcdefghi"),
                     ("mistral v11", "abcdefghi")):  # fmt: skip
        form, _, written = WRITTEN[kind]
        assert form.parse(written, {})[0].id == id


DEEP = '{"a":' * 20_000 + "}"
NO_CALLS = ("Plain. [1, 2] {x}", "", '{"answer": 1}', "[see](x)", "[f(1)]", "[f(open('x'))]")


KINDS = ["dsml", "deepseek", "kimi", "harmony", "mistral", "qwen", "llama"]


@pytest.mark.parametrize("form", FORMATS, ids=KINDS)
@pytest.mark.parametrize("size", [7, 100_000])
def test_what_is_no_call_stays_text(form, size):
    begun = form.opens[0]
    for text in (*NO_CALLS, f"{begun} and then nothing", begun + '{"name": 3}', begun + DEEP):
        shown, rest, calls = read(form, text, size)
        assert (shown + rest, calls) == (text, [])


def test_templates_tell_their_format():
    forms = {
        "deepseek": DEEPSEEK, "kimi": KIMI, "llama3": LLAMA, "mistral": MISTRAL, "qwen3": QWEN,
        "gpt_oss": HARMONY, "gemma": None,
    }  # fmt: skip
    for name, form in forms.items():
        assert format_of((conversations.FOLDER / f"{name}.jinja").read_text()) is form
    assert format_of(TEMPLATE) is None


X = {"type": "object", "properties": {"x": {"enum": [1, 7]}}, "required": ["x"]}
TOOL, OTHER = (
    {"type": "function", "function": {"name": name, "parameters": X}} for name in ("f", "g")
)
CALLING = (
    "{% if tools %}{{ tools | length }}<tool_call>{% endif %}{% for m in messages %}"
    "{{ '<|%s|>' % m.role }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}{{ '<|assistant|>' }}"
    "{{ {true: '<think>\n', false: '<think></think>'}[think] if think is defined }}"
)
"""As DeepSeek's templates do, it takes arguments as texts."""
CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


@pytest.fixture(scope="module")
def site(parts):
    chat = dataclasses.replace(parts.chat, templates={"default": Template(Path("t"), CALLING)})
    limits = dataclasses.replace(LIMITS, embed_tokens=0)
    with served({"tiny": gated(dataclasses.replace(parts, chat=chat), limits)}, limits) as made:
        yield made


@pytest.fixture
def says(site, parts):
    """Lets the model say a text, and end there."""
    engine = site.models["tiny"].runner.engine

    def script(text: str) -> None:
        engine.script = (*parts.tokenizer.encode(text).ids, *parts.eos)

    yield script
    engine.script = ()


def both(site, **asked):
    """The message and the reason of an answer, whole, and as a client joins them from a stream."""
    asked = dict(model="tiny", messages=HI, **asked)
    (choice,) = site.client.chat.completions.create(**asked).choices
    message = choice.message
    found = [getattr(message, "reasoning_content", ""), message.content or ""]
    deltas, finish, order = [], None, []
    for chunk in site.client.chat.completions.create(**asked, stream=True):
        deltas.append(delta := chunk.choices[0].delta)
        finish = chunk.choices[0].finish_reason or finish
        order += [name for name in KINDS_OF_DELTA if getattr(delta, name, None)]
    assert order == sorted(order, key=KINDS_OF_DELTA.index)
    joined = ["".join(getattr(d, name, None) or "" for d in deltas) for name in KINDS_OF_DELTA[:2]]
    assert (joined, finish) == (found, choice.finish_reason)
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert [call.index for call in calls] == list(range(len(calls)))
    whole = [call.function for call in message.tool_calls or []]
    assert [(c.function.name, c.function.arguments) for c in calls] == [
        (call.name, call.arguments) for call in whole
    ]
    return message, finish


KINDS_OF_DELTA = ("reasoning_content", "content", "tool_calls")


def test_a_thought_and_a_call_come_in_their_fields_and_go_back_to_the_template(site, says):
    says(f"<think>\nHm, <tool_call>?\n</think>\n\nSo: {CALL}")
    message, finish = both(site, tools=[TOOL])
    assert (message.reasoning_content, message.content) == ("Hm, <tool_call>?", "So: ")
    (call,) = message.tool_calls
    assert (call.function.name, call.function.arguments) == ("f", '{"x": 1}')
    assert finish == "tool_calls"

    said = [*HI, message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "7"}]
    status, found = site.ask("POST", "/tokenize", {"model": "tiny", "messages": said})
    model = site.models["tiny"]
    text = model.tokenizer.decode(found["tokens"], skip_special_tokens=False)
    thought = f"<think>{message.reasoning_content}</think>"
    wanted = f'<|user|>Hi<|assistant|>{thought}So: f{{"x": 1}}<|tool|>7<|assistant|>'
    assert (status, text) == (200, wanted)
    assert model.calls is QWEN


@pytest.mark.parametrize("form", [None, {"type": "regex", "pattern": "[ab/]{3}"}])
def test_a_thought_that_the_prompt_opens_goes_on_and_the_form_is_that_of_the_answer(
    site, says, form
):
    says("Hm.\n</think>\n\na/b")
    more = {"chat_template_kwargs": {"think": True}, **({"response_format": form} if form else {})}
    message, finish = both(site, extra_body=more)
    assert (message.reasoning_content, message.content, finish) == ("Hm.", "a/b", "stop")
    says("Hm, and")
    message, _ = both(site, extra_body={**more, "max_tokens": 4})
    assert (message.reasoning_content, message.content) == ("Hm, ", "")


QUIET = {"chat_template_kwargs": {"think": False}}


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"f", "g"}), ({"type": "function", "function": {"name": "g"}}, {"g"})],
)
def test_a_random_model_calls_if_it_must(site, choice, names):
    asked = dict(model="tiny", messages=HI, tools=[TOOL, OTHER], parallel_tool_calls=False)
    answer = site.client.chat.completions.create(
        **asked, tool_choice=choice, n=4, seed=1, extra_body=QUIET
    )
    for choice in answer.choices:
        assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
        (call,) = choice.message.tool_calls
        assert call.function.name in names
        assert json.loads(call.function.arguments)["x"] in (1, 7)


def test_tools_that_cannot_be_chosen_are_named(site):
    wrong = (
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "h"}}},
         "tool_choice.function.name", "none of the tools: f"),
    )  # fmt: skip
    for change, param, says in wrong:
        body = {"model": "tiny", "messages": HI, **change}
        status, found = site.ask("POST", "/v1/chat/completions", body)
        assert (status, found["error"]["param"]) == (400, param)
        assert says in found["error"]["message"]


def test_tool_choice_none_hides_the_tools(site):
    answer = site.client.chat.completions.create(
        model="tiny", messages=HI, tools=[TOOL], tool_choice="none", max_tokens=1
    )
    plain = site.client.chat.completions.create(model="tiny", messages=HI, max_tokens=1)
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens
