"""Answers of a given form: whatever the model and the chance, they have it."""

import json
import re

import openai
import pytest

from tests.serve.test_api import HI, metric

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def say(site, form, **more) -> list[str]:
    answer = site.client.chat.completions.create(
        model="tiny", messages=HI, temperature=1.0, extra_body={"response_format": form}, **more
    )
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    return [choice.message.content for choice in answer.choices]


def test_json_of_a_schema_is_that(site):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    for text in say(site, form, n=6, seed=1):
        found = json.loads(text)
        assert list(found) == ["name", "age", "kind"]
        assert (len(found["name"]) <= 8, 0 <= found["age"] <= 150) == (True, True)
        assert found["kind"] in ("cat", "dog")


@pytest.mark.parametrize("pattern", [r"(yes|no)!", r"\d{4}-\d{2}", r"[äöü]{3,5}x"])
def test_text_of_a_pattern_is_that(site, pattern):
    texts = say(site, {"type": "regex", "pattern": pattern}, n=8, seed=2)
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert len(set(texts)) > 1


def test_a_form_that_turns_out_too_large_is_the_clients_to_mend(site):
    made = metric(site, 'zoo_prompt_tokens_total{model="tiny"}')
    form = {"type": "regex", "pattern": "(a{1000}){1000}"}
    with pytest.raises(openai.BadRequestError, match="make that simpler: lexer error") as refused:
        say(site, form)
    assert refused.value.param == "response_format"
    assert "state" not in str(refused.value)
    assert metric(site, 'zoo_prompt_tokens_total{model="tiny"}') == made  # no engine saw it


def test_any_object_is_one(site):
    token = site.models["tiny"].tokenizer.token_to_id("}")
    bias = {str(token): 100}  # else the random model hardly ever ends one
    (text,) = say(site, {"type": "json_object"}, logit_bias=bias)
    assert isinstance(json.loads(text), dict)


def test_completions_have_forms_too_and_streams_end(site):
    stream = site.client.completions.create(
        model="tiny", prompt="a", stream=True, max_tokens=50,
        extra_body={"response_format": {"type": "regex", "pattern": "(ab){2}"}},
    )  # fmt: skip
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == "abab"
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    "form",
    [
        {"type": "regex", "pattern": "(a"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://example.org/x"}}},
        {"type": "regex", "pattern": "a" * 200_000},
    ],
)
def test_forms_that_are_none_are_refused(site, form):
    with pytest.raises(openai.BadRequestError, match="response_format"):
        say(site, form)
