"""Calls in each family's way of writing, whole and in pieces."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from tests.hf import conversations
from tests.inference.test_talk import TEMPLATE
from tests.serve.conftest import LIMITS, served
from tests.serve.test_api import HI
from zoo.hf.template import Template
from zoo.serve.chat import _format
from zoo.serve.model import start
from zoo.serve.tools import FORMATS, Reader, format_of

WEATHER, TIME = ("weather", {"city": "Zürich", "days": 2}), ("time", {})
ARGUMENTS = '{"city": "Zürich", "days": 2}'
DEEPSEEK, KIMI, MISTRAL, QWEN, LLAMA = FORMATS

WRITTEN = {
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


def test_ids_that_a_model_gives_are_kept():
    for kind, id in (("kimi", "functions.weather:0"), ("mistral", "abcdefghi"),
                     ("mistral v11", "abcdefghi")):  # fmt: skip
        form, _, written = WRITTEN[kind]
        assert form.parse(written)[0].id == id


DEEP = '{"a":' * 20_000 + "}"
NO_CALLS = ("Plain. [1, 2] {x}", "", '{"answer": 1}', "[see](x)", "[f(1)]", "[f(open('x'))]")


@pytest.mark.parametrize("form", FORMATS, ids=["deepseek", "kimi", "mistral", "qwen", "llama"])
@pytest.mark.parametrize("size", [7, 100_000])
def test_what_is_no_call_stays_text(form, size):
    begun = form.opens[0]
    for text in (*NO_CALLS, f"{begun} and then nothing", begun + '{"name": 3}', begun + DEEP):
        shown, rest, calls = read(form, text, size)
        assert (shown + rest, calls) == (text, [])


def test_templates_tell_their_format():
    forms = {
        "deepseek": DEEPSEEK, "kimi": KIMI, "llama3": LLAMA, "mistral": MISTRAL, "qwen3": QWEN,
        "gemma": None,
    }  # fmt: skip
    for name, form in forms.items():
        assert format_of((conversations.FOLDER / f"{name}.jinja").read_text()) is form
    assert format_of(TEMPLATE) is None


TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}
CALLING = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}"
    "{{ '<|%s|>' % m.role }}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{{ c.function.arguments.x }}{% endfor %}{% endfor %}{{ '<|assistant|>' }}"
)
CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


@pytest.fixture(scope="module")
def site(parts):
    chat = dataclasses.replace(parts.chat, templates={"default": Template(Path("t"), CALLING)})
    limits = dataclasses.replace(LIMITS, embed_tokens=0)
    with served({"tiny": start("tiny", dataclasses.replace(parts, chat=chat), limits)}) as made:
        yield made


def test_a_call_comes_as_openai_has_it_and_goes_back_to_the_template(site):
    """The random model is made to write a call by a pattern that allows nothing else."""
    said = list(HI)
    asked = dict(
        model="tiny", messages=said, tools=[TOOL],
        extra_body={"response_format": {"type": "regex", "pattern": "So: " + re.escape(CALL)}},
    )  # fmt: skip
    answer = site.client.chat.completions.create(**asked)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "So: ")
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("f", '{"x": 1}')
    deltas = [c.choices[0].delta for c in site.client.chat.completions.create(**asked, stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == "So: "
    (called,) = [delta.tool_calls for delta in deltas if delta.tool_calls]
    assert (called[0].index, called[0].function.arguments) == (0, '{"x": 1}')

    said += [choice.message.model_dump(exclude_none=True),
             {"role": "tool", "tool_call_id": call.id, "content": "7"}]  # fmt: skip
    status, found = site.ask("POST", "/tokenize", {"model": "tiny", "messages": said})
    model = site.models["tiny"]
    text = model.tokenizer.decode(found["tokens"], skip_special_tokens=False)
    assert (status, text) == (200, "<|user|>Hi<|assistant|>So: f1<|tool|>7<|assistant|>")
    assert _format(model) is QWEN


def test_tool_choice_none_hides_the_tools(site):
    answer = site.client.chat.completions.create(
        model="tiny", messages=HI, tools=[TOOL], tool_choice="none", max_tokens=1
    )
    plain = site.client.chat.completions.create(model="tiny", messages=HI, max_tokens=1)
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens
