"""Calls in each family's way of writing, whole and in pieces."""

import dataclasses
import itertools
import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.hf import conversations
from tests.inference.test_talk import TEMPLATE
from tests.serve.conftest import LIMITS, gated, served
from tests.serve.test_api import HI
from zoo.hf.template import Template
from zoo.serve.formats import FORMATS, format_of
from zoo.serve.telling import Call
from zoo.serve.tools import Reader, properties

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


TOLD = set(WRITTEN) - {"mistral", "llama 4"}
"""Ways of writing whose calls are told before they are whole."""


def calls_of(form, text: str, given=None):
    return [piece for piece in form.parse(text, given or {}) if isinstance(piece, Call)]


def read(form, text: str, size: int, given=None):
    """What a reader shows before the end and after it, and the calls."""
    reader = Reader(form, given)
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


@pytest.mark.parametrize("kind", WRITTEN)
def test_an_answer_that_is_cut_has_the_calls_that_are_whole(kind):
    form, _, written = WRITTEN[kind]
    for end in range(len(written)):
        calls = calls_of(form, written[:end])
        found = [(call.name, json.loads(call.arguments)) for call in calls]
        assert found == [WEATHER, TIME][: len(found)], written[:end]


def told(form, pieces, given=None):
    """What a client joins from a stream: the text, and the calls before the end and after it."""
    reader, calls = Reader(form, given), []

    def join() -> list[Call]:
        for index, delta in ((d.index, d.openai()) for d in reader.deltas()):
            function = delta["function"]
            if "id" in delta:
                assert (index, delta["type"]) == (len(calls), "function")
                calls.append(Call(function["name"], "", delta["id"]))
            else:
                assert (index, "name" in function) == (len(calls) - 1, False)
            call = calls[index]
            calls[index] = call._replace(arguments=call.arguments + function["arguments"])
        return list(calls)

    shown, before = "", []
    for piece in pieces:
        shown += reader.push(piece)
        before = join()
    rest, whole = reader.end()
    return shown + rest, before, join(), whole


@pytest.mark.parametrize("kind", WRITTEN)
def test_calls_are_told_while_they_are_written(kind):
    form, before, written = WRITTEN[kind]
    text, early, late, whole = told(form, before + written)
    assert (text, late) == (before, whole)
    assert [(call.name, json.loads(call.arguments)) for call in whole] == [WEATHER, TIME]
    assert early == (whole if kind in TOLD else [])
    if kind in TOLD:
        given = {"weather": {"city": {"type": "string"}}}
        _, begun, _, _ = told(form, before + written[: written.index("rich")], given)
        assert [(call.name, call.arguments) for call in begun] == [("weather", '{"city": "Zü')]


@pytest.mark.parametrize("kind", WRITTEN)
def test_equal_calls_are_told_each(kind):
    form, before, written = WRITTEN[kind]
    text = before + written.replace("weather", "time").replace(ARGUMENTS, "{}")
    _, _, late, whole = told(form, text)
    assert late == whole
    assert len({call.id for call in whole}) == 2


def spelled(kind: str, arguments: dict, style: dict) -> str:
    """How a model writes a call of `weather` with such arguments, and one of `time`."""
    written = WRITTEN[kind][2]
    if kind not in SPELLED:
        return written.replace(ARGUMENTS, json.dumps(arguments, **style))
    begin, end = SPELLED[kind]
    texts = {key: isinstance(value, str) for key, value in arguments.items()}
    values = [
        begin.format(key, str(texts[key]).lower())
        + (value if texts[key] else json.dumps(value, **style))
        + end
        for key, value in arguments.items()
    ]
    first = begin.format("city", "true")
    last = written.index(end, written.index("days")) + len(end)
    return written[: written.index(first)] + "".join(values) + written[last:]


SPELLED = {
    "deepseek v3.2": (
        '<｜DSML｜parameter name="{}" string="{}">',
        "</｜DSML｜parameter>\n",
    ),
    "qwen coder": ("<parameter={}>\n", "\n</parameter>\n"),
}
TEXTS = st.text(max_size=4) | st.sampled_from(["\n", "\n\na\n", "a\nb", "</p", '\\"'])
TEXTS |= st.sampled_from(["</tool_call>", "<tool_call>", "[TOOL_CALLS]", "<|call|>"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | st.sampled_from('{}[]"\\,;'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
STYLES = {}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}


@pytest.mark.parametrize("kind", WRITTEN)
@given(
    arguments=st.dictionaries(st.text("aü_- ", min_size=1, max_size=4), VALUES, max_size=4),
    style=st.sampled_from(STYLES),
    places=st.none() | st.lists(st.floats(0, 1), max_size=12),
    end=st.none() | st.floats(0, 1),
    after=st.sampled_from(["", " That is all.", "}", "\n"]),
)
@example({"a": 'a\n"b', "b": "\n", "c": [1], "d": "c\n"}, {}, None, None, "")
@settings(max_examples=30, deadline=None)
def test_calls_in_pieces_are_those_of_the_whole(kind, arguments, style, places, end, after):
    """However the text is divided; a call that is cut has begun, and is in the text."""
    form, before, _ = WRITTEN[kind]
    text = before + spelled(kind, arguments, style) + after
    text = text if end is None else text[: round(end * len(text))]
    places = range(len(text)) if places is None else [round(p * len(text)) for p in places]
    cuts = sorted({0, *places, len(text)})
    given = {"weather": {k: {"type": "string"} for k, v in arguments.items() if type(v) is str}}
    found = told(form, [text[a:b] for a, b in itertools.pairwise(cuts)], given)
    shown, rest, calls = read(form, text, len(text) + 1, given)
    assert found[0] == shown + rest
    assert [call[:2] for call in found[3]] == [call[:2] for call in calls]
    begun = [call for call in found[2] if call not in found[3]]
    assert [call for call in found[2] if call not in begun] == found[3]
    assert len(begun) <= 1
    if end is None and (kind != "gpt-oss" or not after.strip()):
        assert not begun
        assert [call.name for call in found[3]] == ["weather", "time"]
        assert found[1] == (found[3] if kind in TOLD else [])
        if kind in TOLD:
            assert json.loads(found[3][0].arguments) == arguments


@pytest.mark.parametrize("kind", sorted(TOLD))
def test_a_call_that_has_begun_and_breaks_is_in_the_text(kind):
    form, before, written = WRITTEN[kind]
    broken = written.replace(*next(pair for pair in BREAKS.items() if pair[0] in written), 1)
    text, early, late, whole = told(form, before + broken)
    shown, rest, calls = read(form, before + broken, 1)
    assert (text, [call[:2] for call in whole]) == (shown + rest, [call[:2] for call in calls])
    assert early[0].name == "weather"
    assert early[0] not in whole
    assert late[0] == early[0]
    assert set(late) >= set(whole)
    assert early[0].arguments.startswith('{"city"')
    assert "Zürich" in early[0].arguments
    assert "Zürich" in text


MARKS = {"mistral": ["[TOOL_CALLS]"], "deepseek v3": ["\n```<｜tool▁call▁end｜>", "```"]}
ENDS = {
    DEEPSEEK: ["<｜tool▁call▁end｜>", "<｜tool▁call▁begin｜>"], KIMI: ["<|tool_call_end|>"],
    HARMONY: ["<|call|>", "<|message|>"], MISTRAL: ["[TOOL_CALLS]", "[ARGS]{"],
    QWEN: ["</tool_call>", "<tool_call>", "}}</tool_call>", "</function></tool_call>"],
    LLAMA: ["<|python_tag|>", "}; {"], DSML: ["</｜DSML｜invoke>", "<｜DSML｜invoke >"],
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("kind", WRITTEN)
def test_what_ends_a_call_does_not_in_a_text_of_its_arguments(kind, size):
    form, before, _ = WRITTEN[kind]
    for mark in (*ENDS[form], *MARKS.get(kind, ())):
        for value in (mark, f'\\"{mark}"', f"a {mark}{mark[:3]}\n b"):
            arguments = {"city": value, "days": [1]}
            if kind == "llama 4":
                literal = json.dumps(value)
                text = before + f"[weather(city={literal}, days=[1]), time()]"
            else:
                text = before + spelled(kind, arguments, {})
            pieces = [text[i : i + size] for i in range(0, len(text), size)]
            shown, early, late, whole = told(
                form, pieces, {"weather": {"city": {"type": "string"}}}
            )
            assert shown == before
            assert late == whole
            assert early == (whole if kind in TOLD else [])
            found = [(call.name, json.loads(call.arguments)) for call in whole]
            assert found == [("weather", arguments), TIME]


BREAKS = {'"city":': '"city"', "</parameter>": "", "</｜DSML｜parameter>": "", "city=": "city=="}
BEGUN = {DSML: '<｜DSML｜invoke name="f">', DEEPSEEK: "<｜tool▁call▁begin｜>f",
         KIMI: "<|tool_call_begin|>f", HARMONY: " to=functions.f "}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_nothing_beside_a_call_is_lost(kind):
    form, before, written = WRITTEN[kind]
    shown, rest, calls = read(form, f"{before}{written} That is all.", 3)
    assert (shown, rest.endswith(" That is all.")) == (before, True)
    ended = kind != "gpt-oss"  # its second call goes on with the text, which makes it none
    assert [call.name for call in calls] == ["weather", "time"][: 1 + ended]
    whole, broken = next(pair for pair in BREAKS.items() if pair[0] in written)
    shown, rest, calls = read(form, before + written.replace(whole, broken, 1), 3)
    assert (shown, "Zürich" in rest) == (before, True)
    divided = not (form is LLAMA or kind == "mistral")
    assert [call.name for call in calls] == ["time"][:divided]
    if begun := BEGUN.get(form):
        _, rest, calls = read(form, begun + written, 3)
        assert ([call.name for call in calls], rest.strip()) == (["weather", "time"], begun.strip())


def test_no_text_takes_long_to_read():
    began = time.process_time()
    for form in FORMATS:
        for letter in (" ", "a"):
            form.parse(form.opens[-1] + letter * 100_000, {})
            read(form, form.opens[-1] + letter * 20_000, 40)
    assert time.process_time() - began < 5


def test_an_object_with_a_name_is_a_call_if_it_has_arguments_or_the_name_of_a_function():
    person = '{"name": "Alice", "age": 7}'
    for text, found in ((person, []), ('{"name": "f"}', ["f"]), ('{"name": ["f"]}', [])):
        shown, rest, calls = read(LLAMA, text, 5, {"f": {}})
        assert ([call.name for call in calls], shown + rest) == (found, "" if found else text)


def test_names_need_not_be_those_of_python():
    text = '[brave-search(from="a (b=c), d-e(", max-count=2), a.b/c(), class(is=[true])]'
    found = [(call.name, json.loads(call.arguments)) for call in calls_of(LLAMA, text)]
    first = {"from": "a (b=c), d-e(", "max-count": 2}
    assert found == [("brave-search", first), ("a.b/c", {}), ("class", {"is": [True]})]
    for text in ("[f(_0=g(1))]", "[(f)()]", "[f(a=1)(b=2)]", "[f(**a)]", "[f(a=b)]"):
        assert calls_of(LLAMA, text) == []


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
    (call,) = calls_of(QWEN, f"<tool_call><function=f>\n{coder}</function></tool_call>", given)
    assert json.loads(call.arguments) == {"a": "1", "b": "1", "c": 1, "d": 1}
    kinds = (("true", "1"), ("false", "1"), ("false", "[true, null]"), ("false", "no JSON"))
    dsml = "".join(f'<｜DSML｜parameter name="{i}" string="{kind}">{text}</｜DSML｜parameter>'
                   for i, (kind, text) in enumerate(kinds))  # fmt: skip
    (call,) = calls_of(DSML, f'<｜DSML｜invoke name="f">{dsml}</｜DSML｜invoke>')
    assert json.loads(call.arguments) == {"0": "1", "1": 1, "2": [True, None], "3": "no JSON"}


def test_arguments_are_json_that_can_be_sent():
    (call,) = calls_of(LLAMA, '[f(a=true, b=[None, null], c={"d": false}, e="\\ud800")]')
    assert json.loads(call.arguments) == {
        "a": True,
        "b": [None] * 2,
        "c": {"d": False},
        "e": "\ud800",
    }
    assert call.arguments.isascii()
    (call,) = calls_of(QWEN, '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}')
    assert call.arguments == r'{"a": "\ud800"}'
    for number in ("NaN", "-Infinity", "1e999"):
        text = f"<tool_call><function=f><parameter=a>{number}</parameter></function></tool_call>"
        assert [call.arguments for call in calls_of(QWEN, text)] == [f'{{"a": "{number}"}}']
    for text in ("no JSON", "[1]", '{"a": NaN}'):
        said = json.dumps({"name": "f", "arguments": text})
        assert calls_of(QWEN, f"<tool_call>{said}</tool_call>") == []
    for name, value in ((r"\ud800", "1"), ("f", "NaN"), ("f", "1e999")):
        text = f'<tool_call>{{"name": "{name}", "arguments": {{"a": {value}}}}}'
        assert calls_of(QWEN, text) == []


def test_ids_that_a_model_gives_are_kept():
    for kind, id in (("kimi", "functions.weather:0"), ("mistral", "abcdefghi"),
                     ("mistral v11", "abcdefghi")):  # fmt: skip
        form, _, written = WRITTEN[kind]
        assert calls_of(form, written)[0].id == id


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


def both(site, thinking=0, **asked):
    """The message and the reason of an answer, whole, and as a client joins them from a stream.

    Of its tokens `thinking` are those of a thought.
    """
    asked = dict(model="tiny", messages=HI, **asked)
    answer = site.client.chat.completions.create(**asked)
    (choice,) = answer.choices
    message = choice.message
    found = [getattr(message, "reasoning_content", ""), message.content or ""]
    deltas, finish, order, usage = [], None, [], {"include_usage": True}
    for chunk in site.client.chat.completions.create(**asked, stream=True, stream_options=usage):
        usage = chunk.usage
        if not chunk.choices:
            break
        deltas.append(delta := chunk.choices[0].delta)
        finish = chunk.choices[0].finish_reason or finish
        order += [name for name in KINDS_OF_DELTA if getattr(delta, name, None)]
    assert usage == answer.usage
    assert list(dict.fromkeys(order)) == [name for name in KINDS_OF_DELTA if name in order]
    joined = ["".join(getattr(d, name, None) or "" for d in deltas) for name in KINDS_OF_DELTA[:2]]
    assert (joined, finish) == (found, choice.finish_reason)
    calls: list[list[str]] = []
    for call in (call for delta in deltas for call in delta.tool_calls or []):
        if call.id:
            calls.append([call.function.name, ""])
        assert call.index == len(calls) - 1
        calls[-1][1] += call.function.arguments
    whole = [call.function for call in message.tool_calls or []]
    assert calls[: len(whole)] == [[call.name, call.arguments] for call in whole]
    assert answer.usage.completion_tokens_details.reasoning_tokens == thinking
    return message, finish


KINDS_OF_DELTA = ("reasoning_content", "content", "tool_calls")


def test_a_thought_and_a_call_come_in_their_fields_and_go_back_to_the_template(site, says):
    thought = "\nHm, <tool_call>?\n"
    says(f"<think>{thought}</think>\n\nSo: {CALL}")
    message, finish = both(site, thinking=len(thought), tools=[TOOL])
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


def test_text_beside_calls_is_content_and_an_answer_that_is_cut_says_so(site, says):
    says(text := f"A {CALL}<tool_call>[</tool_call> B")
    message, finish = both(site, tools=[TOOL])
    assert (message.content, finish) == ("A <tool_call>[</tool_call> B", "tool_calls")
    message, finish = both(site, tools=[TOOL], max_tokens=len(text) - 20)
    assert (message.content, len(message.tool_calls), finish) == ("A <tool_", 1, "length")


@pytest.mark.parametrize("form", [None, {"type": "regex", "pattern": "[ab/]{3}"}])
def test_a_thought_that_the_prompt_opens_goes_on_and_the_form_is_that_of_the_answer(
    site, says, form
):
    says("Hm. ä\n</think>\n\na/b")
    more = {"chat_template_kwargs": {"think": True}, **({"response_format": form} if form else {})}
    message, finish = both(site, thinking=len("Hm. ä\n".encode()), extra_body=more)
    assert (message.reasoning_content, message.content, finish) == ("Hm. ä", "a/b", "stop")
    says("Hm, and")
    message, _ = both(site, thinking=4, extra_body={**more, "max_tokens": 4})
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


def test_openais_client_joins_a_call_while_it_is_written(site):
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    with site.client.chat.completions.stream(
        model="tiny", messages=HI, tools=[strict], tool_choice="required",
        parallel_tool_calls=False, seed=1, extra_body=QUIET,
    ) as stream:  # fmt: skip
        kinds = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    (call,) = choice.message.tool_calls
    assert (call.function.name, choice.finish_reason) == ("f", "tool_calls")
    assert call.function.parsed_arguments["x"] in (1, 7)
    assert kinds.count("tool_calls.function.arguments.delta") > 5
    assert kinds.count("tool_calls.function.arguments.done") == 1


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
