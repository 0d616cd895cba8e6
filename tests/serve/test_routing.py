"""Which model answers: by name, weight and rule, the same for a conversation, another when busy."""

import collections
import dataclasses
import json

import openai
import pytest

from tests.serve.conftest import LIMITS, gated, served
from tests.serve.test_api import HI
from tests.waiting import until
from zoo.serve.model import start
from zoo.serve.routing import Route, Rule, language, read_routes


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("What is a tide?", "latin"),
        ("什么是潮汐? (tide)", "zh"),
        ("潮汐とは何ですか", "ja"),
        ("조석이란 무엇인가", "ko"),
        ("Что такое прилив?", "ru"),
        ("ما هو المد؟", "ar"),
        ("The word 潮 and the kana し in an English sentence", "latin"),
        ("1 + 1 = ?", None),
    ],
)
def test_languages_are_told_by_their_script(text, code):
    assert language(text) == code


def test_weights_are_shares_of_conversations_and_a_conversation_stays():
    route = Route({"a": 6, "b": 3, "c": 1})
    firsts = [route.order("", 0, str(i))[0] for i in range(4000)]
    counts = collections.Counter(firsts)
    for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        spread = (share * (1 - share) / 4000) ** 0.5
        assert abs(counts[name] / 4000 - share) < 4 * spread
    assert firsts == [route.order("", 0, str(i))[0] for i in range(4000)]
    grown = Route({"a": 6, "b": 3, "c": 1, "d": 1})  # a new model takes, and moves nothing else
    moved = [grown.order("", 0, str(i))[0] for i in range(4000)]
    assert all(now in (was, "d") for was, now in zip(firsts, moved, strict=True))


def test_rules_come_first_and_fall_backs_last():
    route = Route(
        {"a": 1},
        (Rule("zh", language="zh"), Rule("long", longer=100), Rule("short", shorter=5)),
        ("spare", "a"),
    )
    assert route.order("什么", 200, "x") == ["zh", "a", "spare"]
    assert route.order("What", 101, "x") == ["long", "a", "spare"]
    assert route.order("What", 100, "x") == ["a", "spare"]
    assert route.order("Hi", 2, "x") == ["short", "a", "spare"]
    assert route.names == ("zh", "long", "short", "a", "spare")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ({"auto": {}}, "no weights"),
        ({"auto": {"weights": {"a": 0}}}, r"weights\['a'\]=0 must be a positive"),
        ({"auto": {"weights": {"a": True}}}, r"weights\['a'\]=True must be a positive"),
        ({"auto": {"weights": ["a"]}}, r"weights=\['a'\] must be an object"),
        ({"auto": {"weights": {"a": 1}, "fallback": "b"}}, "fallback='b' must be a list"),
        ({"auto": {"weights": {"x": 1}}}, "'x' is not served; there are a, b"),
        ({"a": {"weights": {"a": 1}}}, "a model has this name"),
        ({"auto": {"weights": {"a": 1}, "sticky": True}}, "'sticky' is not one of weights"),
        ({"auto": {"weights": {"a": 1}, "rules": [{"to": "b"}]}}, "has no condition"),
        ({"auto": {"weights": {"a": 1}, "rules": [{"to": "b", "language": "xx"}]}}, "must be one"),
        ({"auto": {"weights": {"a": 1}, "rules": [{"language": "zh"}]}}, "to"),
    ],
)
def test_routes_that_mean_nothing_are_refused(tmp_path, said, says):
    file = tmp_path / "routes.json"
    file.write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(ValueError, match=says):
        read_routes(file, ("a", "b"))


@pytest.fixture(scope="module")
def site(parts, tmp_path_factory):
    """Three models behind three routes; the one called held has one slot and no queue."""
    limits = dataclasses.replace(LIMITS, embed_tokens=0)
    small = dataclasses.replace(limits, queue=0)
    models = {
        "first": start("first", parts, limits),
        "second": start("second", parts, limits),
        "held": gated(parts, small, "held"),
    }
    file = tmp_path_factory.mktemp("routes") / "routes.json"
    file.write_text(
        json.dumps(
            {
                "auto": {"weights": {"first": 1, "second": 1}},
                "ruled": {
                    "weights": {"first": 1},
                    "rules": [{"language": "zh", "to": "second"}, {"longer": 50, "to": "held"}],
                },
                "safe": {"weights": {"held": 1}, "fallback": ["second"]},
                "alone": {"weights": {"held": 1}},
            }
        )
    )
    with served(models, limits, read_routes(file, models)) as made:
        yield made
        models["held"].runner.engine.gate.set()


def spoke(site, model: str, text="Hi", headers=None, **more) -> str:
    """The model that answered."""
    messages = [{"role": "user", "content": text}]
    asked = dict(model=model, messages=messages, max_tokens=2, extra_headers=headers, **more)
    answer = site.client.chat.completions.create(**asked)
    stream = site.client.chat.completions.create(**asked, stream=True)
    assert {chunk.model for chunk in stream} == {answer.model}
    return answer.model


def test_names_and_routes_are_listed_and_answer_by_their_models_name(site):
    listed = {model.id: model for model in site.client.models.list().data}
    status, found = site.ask("POST", "/tokenize", {"model": "auto", "prompt": "a"})
    assert (status, found["error"]["param"]) == (400, "model")
    assert "name one of first, second" in found["error"]["message"]
    assert list(listed) == ["first", "second", "held", "auto", "ruled", "safe", "alone"]
    assert listed["ruled"].routes_to == ["second", "held", "first"]
    assert [spoke(site, name) for name in ("first", "second", "held")] == [
        "first", "second", "held"
    ]  # fmt: skip


def test_a_conversation_keeps_its_model(site):
    chosen = {
        f"c{i}": spoke(site, "auto", headers={"X-Conversation-Id": f"c{i}"}) for i in range(8)
    }
    assert set(chosen.values()) == {"first", "second"}
    for name, model in chosen.items():
        assert spoke(site, "auto", "other words", {"X-Conversation-Id": name}) == model
    question = [{"role": "user", "content": "What is a tide?"}]
    more = [{"role": "assistant", "content": "Water."}, {"role": "user", "content": "Why?"}]
    models = {
        site.client.chat.completions.create(model="auto", messages=said, max_tokens=1).model
        for said in (question, question + more, question + more * 2)
    }
    assert len(models) == 1


def test_rules_look_at_the_language_and_the_length(site):
    assert spoke(site, "ruled", "What is a tide?") == "first"
    assert spoke(site, "ruled", "什么是潮汐") == "second"
    assert spoke(site, "ruled", "What is a tide? " * 5) == "held"


def test_another_model_answers_for_one_that_is_busy_or_fails(site):
    engine = site.models["held"].runner.engine
    assert spoke(site, "safe") == "held"
    engine.faults = 2
    assert spoke(site, "safe") == "second"
    assert engine.faults == 0
    engine.faults = 1
    with pytest.raises(openai.InternalServerError, match="held failed"):
        site.client.chat.completions.create(model="alone", messages=HI)
    engine.gate.clear()
    waiting = site.models["held"].runner
    stream = site.connect()
    body = {"model": "held", "messages": HI, "n": LIMITS.slots, "max_tokens": 4}
    stream.request("POST", "/v1/chat/completions", json.dumps(body),
                   {"Content-Type": "application/json"})  # fmt: skip
    until(lambda: waiting.load, lambda load: load == LIMITS.slots)
    assert site.ask("GET", "/health")[0] == 200
    assert spoke(site, "safe") == "second"
    with pytest.raises(openai.RateLimitError, match="held is busy"):
        site.client.chat.completions.create(model="alone", messages=HI)
    engine.gate.set()
    assert len(json.loads(stream.getresponse().read())["choices"]) == LIMITS.slots
    stream.close()
