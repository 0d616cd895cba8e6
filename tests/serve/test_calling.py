"""Grammars of calls: they take what a model of the family would write, and nothing else."""

import dataclasses
import json
import re

import llguidance
import numpy as np
import pytest
from tokenizers import AddedToken

import zoo
from tests.examples import CONFIGS
from tests.inference.test_talk import byte_level
from tests.serve.test_tools import WRITTEN, calls_of
from zoo.serve import calling
from zoo.serve.constraint import by_format, by_tools
from zoo.serve.errors import ApiError
from zoo.serve.model import Model, Parts
from zoo.serve.thoughts import MARKS, Thinks
from zoo.serve.tools import Reader, properties

END = "<|end|>"
TOKENS = [
    "<|channel|>", "<|message|>", "<|constrain|>", "<|start|>",
    "<tool_call>", "</tool_call>", "<think>", "</think>", "｜DSML｜", "[TOOL_CALLS]", "[ARGS]",
    *(f"<｜tool▁{part}｜>" for part in ("calls▁begin", "call▁begin", "sep", "call▁end",
                                      "calls▁end")),
    *(f"<|tool_call{part}|>" for part in ("s_section_begin", "_begin", "_argument_begin", "_end",
                                          "s_section_end")),
]  # fmt: skip
TEMPLATES = {
    "deepseek v3.2": "｜DSML｜ function_calls",
    "deepseek v3": "<｜tool▁call▁begin｜> ```json",
    "deepseek v3.1": "<｜tool▁call▁begin｜>",
    "kimi": "<|tool_call_begin|>",
    "gpt-oss": "<|channel|>commentary",
    "mistral": "[TOOL_CALLS]",
    "mistral v11": "[TOOL_CALLS] [ARGS]",
    "qwen": "<tool_call>",
    "qwen coder": "<tool_call> <function=",
    "llama 3": "ipython",
    "llama 4": "ipython [func_name1(params)]",
}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 0, "maximum": 14},
        "unit": {"enum": ["°C", "°F"]},
        "at": {"$ref": "#/$defs/place"},
    },
    "required": ["city"],
    "$defs": {"place": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "time"}},
]


@dataclasses.dataclass
class Templated(Model):
    """A model that is nothing but a vocabulary, with a template of these words."""

    template: str = ""

    @property
    def templates(self) -> str:
        return self.template


def model(template: str, special: bool = True) -> Templated:
    tokenizer = byte_level()
    if special:
        tokenizer.add_tokens(
            [AddedToken(text, special=i % 2 == 0) for i, text in enumerate(TOKENS)]
        )
    config = dataclasses.replace(CONFIGS["dense"], vocab_size=tokenizer.get_vocab_size())
    parts = Parts(zoo.Decoder(config), {}, tokenizer, None, (tokenizer.token_to_id(END),))
    return Templated("m", parts, 256, None, None, None, template=template)


def ends(made: Model, constraint, text: str) -> bool:
    """Whether an answer can be this text."""
    for token in made.tokenizer.encode(text).ids:
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    allowed = constraint.allowed()
    return not allowed.any() or bool(allowed[list(made.eos)].any())


def restricted(made: Model, tools=TOOLS, form=None, how=None, needed=True, several=True):
    return by_tools(made, tools, form, how, needed=needed, several=several)


OTHERS = {
    "gpt-oss": "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city": "Zürich", "days": 2}',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}, '
    '{"name": "time", "arguments": {}}]',
    "mistral v11": '[TOOL_CALLS]weather[ARGS]{"city": "Zürich", "days": 2}[TOOL_CALLS]time[ARGS]{}',
    "llama 3": '{"name": "weather", "parameters": {"city": "Zürich", "days": 2}}',
}
"""What is written where models are read in more ways than that."""


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_the_family_writes_is_allowed_and_other_things_are_not(kind, special):
    made = model(TEMPLATES[kind], special)
    text = OTHERS.get(kind, WRITTEN[kind][2])
    needed, free = restricted(made), restricted(made, needed=False)
    assert ends(made, needed(), text)
    assert not ends(made, needed(), "No call. " + text)
    assert not ends(made, needed(), text.replace("weather", "whether"))
    assert not ends(made, needed(), "")
    assert ends(made, free(), text)
    assert ends(made, free(), "No call <at> [all] {x}")
    assert ends(made, free(), "")
    one = restricted(made, several=False)
    assert ends(made, one(), text) == (kind in ("llama 3", "gpt-oss"))
    leads = made.calls.leads
    assert ends(made, free(), "Look: a < b\n" + text)  # for Llama that is text, for others a call
    strict = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]
    free = restricted(made, strict, needed=False)
    wrong = text.replace("2", '"two"')
    assert not ends(made, free(), wrong)
    assert ends(made, free(), "Look: " + wrong) == leads
    form = {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {}}}}}
    either = restricted(made, form=form, needed=False)
    assert ends(made, either(), text)
    assert ends(made, either(), '{"a": 1}')
    assert not ends(made, either(), "No call")
    assert not ends(made, restricted(made, form=form)(), '{"a": 1}')
    loose = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": False}}, TOOLS[1]]
    assert ends(made, restricted(made, loose)(), wrong)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_whatever_the_chance_calls_are_calls_of_the_schema(kind, rng):
    made = model(TEMPLATES[kind])
    bounded = {**WEATHER, "properties": {**WEATHER["properties"], "city": {"enum": ["a b", '"']}}}
    tools = [{"function": {"name": "weather", "parameters": bounded}}, TOOLS[1]]
    checked = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(bounded))
    for _ in range(6):
        constraint, tokens = restricted(made, tools)(), []
        while (allowed := constraint.allowed()).any():
            tokens.append(int(rng.choice(np.flatnonzero(allowed))))
            if tokens[-1] in made.eos:
                tokens.pop()
                break
            constraint.accept(tokens[-1])
        text = made.tokenizer.decode(tokens, skip_special_tokens=False)
        reader = Reader(made.calls, properties(tools))
        assert reader.push(text) == ""
        rest, calls = reader.end()
        assert (rest, bool(calls)) == ("", True), text
        for call in calls:
            found = json.loads(call.arguments)
            if call.name == "time":
                assert found == {}
                continue
            assert call.name == "weather"
            matcher = llguidance.LLMatcher(made.grammar_tokens, checked)
            spelled = made.tokenizer.encode(json.dumps(found, ensure_ascii=False)).ids
            assert matcher.try_consume_tokens(spelled) == len(spelled), text


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
def test_a_thought_may_come_first_or_is_gone_on_with(special):
    made = model("<tool_call>", special)
    call = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    may, opened = (restricted(made, how=Thinks(MARKS[0], begun)) for begun in (False, True))
    assert ends(made, may(), call)
    assert ends(made, may(), f"<think>\nHm: a < b.\n</think>\n\n{call}")
    assert not ends(made, may(), f"Hm.</think>{call}")
    assert ends(made, opened(), f"Hm: a < b.\n</think>\n\n{call}")
    assert not ends(made, opened(), call)


def test_channels_stand_between_a_thought_and_what_is_said():
    made, how = model("<|channel|>commentary"), Thinks(MARKS[-1], False)
    thought = "<|channel|>analysis<|message|>Hm, <x>.<|end|><|start|>assistant"
    said = "<|channel|>final<|message|>"
    call = "<|channel|>commentary to=functions.time <|constrain|>json<|message|>{}"
    needed, free = (restricted(made, how=how, needed=needed) for needed in (True, False))
    pattern = by_format(made, {"type": "regex", "pattern": "a+/"}, how)
    for before in ("", thought):
        assert ends(made, needed(), before + call)
        assert ends(made, free(), before + call)
        assert ends(made, free(), f"{before}{said}Hello")
        assert ends(made, pattern(), f"{before}{said}aa/")
        assert not ends(made, pattern(), f"{before}aa/")
        assert not ends(made, needed(), f"{before}{said}Hello")


def test_an_answer_of_a_model_that_no_token_ends_ends_with_its_form():
    made = model("<tool_call>")
    made.parts.eos = ()
    pattern = by_format(made, {"type": "regex", "pattern": "!a{2}"})()  # the first token is a "!"
    for token in made.tokenizer.encode("!aa").ids:
        assert pattern.allowed().nonzero()[0].tolist() == [token]
        pattern.accept(token)
    assert not pattern.allowed().any()


def test_schemas_that_are_none_are_refused_by_the_tools_name():
    made = model("<tool_call> <function=")
    for wrong in (
        {"type": "nonsense"},
        {"properties": 3},
        {"required": 5},
        {"properties": {"a": {"$ref": "x"}}},
    ):
        tools = [{"function": {"name": "f", "parameters": wrong}}]
        with pytest.raises(ApiError, match=r"^tools: parameters of 'f'") as error:
            restricted(made, tools)
        assert error.value.param == "tools"
    for name in ("a b", 'a"', "<a>", "a\n"):
        with pytest.raises(ApiError, match="cannot be written: use letters"):
            restricted(made, [{"function": {"name": name}}])


@pytest.mark.parametrize("kind", ["qwen coder", "llama 4"])
def test_properties_may_be_of_any_kind_or_of_none(kind):
    """As true and false say in JSON Schema."""
    kept = {"type": "string", "const": "x"}
    schema = {"properties": {"a": True, "b": False, "k": kept, "c-d": {"type": "integer"}}}
    made = model(TEMPLATES[kind])
    held = restricted(made, [{"function": {"name": "f-g", "parameters": schema}}])
    written = {
        "qwen coder": "<tool_call>\n<function=f-g>\n<parameter=a>\n[1]\n</parameter>\n"
        "<parameter=k>\nx\n</parameter>\n<parameter=c-d>\n2\n</parameter>\n</function>\n</tool_call>",
        "llama 4": '[f-g(a=[1], k="x", c-d=2)]',
    }[kind]
    assert ends(made, held(), written)
    assert not ends(made, held(), re.sub(r"\ba(?=[=>])", "b", written))
    assert not ends(made, held(), written.replace("x", "y"))
    (call,) = calls_of(made.calls, written)
    assert (call.name, json.loads(call.arguments)) == ("f-g", {"a": [1], "k": "x", "c-d": 2})


def test_properties_that_a_schema_does_not_name_are_none_unless_it_says_so():
    name, schema = calling.parameters({"function": {"name": "f", "parameters": WEATHER}})
    assert (name, schema["additionalProperties"]) == ("f", False)
    for said in ({"type": "object"}, {"properties": {}, "additionalProperties": True}):
        _, schema = calling.parameters({"function": {"name": "f", "parameters": said}})
        assert schema.get("additionalProperties", True)
