"""The OpenAI protocol, spoken by OpenAI's own client."""

import dataclasses
import json

import jax
import numpy as np
import openai
import pytest

import zoo
from tests.inference.test_engine import compiled  # noqa: F401 (a fixture)
from tests.serve.conftest import LIMITS, served
from zoo.serve.model import start
from zoo.sharding import shardings

HI = [{"role": "user", "content": "Hi"}]
LONGER = [
    {"role": "system", "content": "Be brief."},
    *HI,
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": [{"type": "text", "text": "Na"}, {"type": "text", "text": "ïve?"}]},
]


def joined(stream):
    """Text, last finish reason and usage of a stream, and the number of its pieces."""
    text, finish, usage, pieces = "", None, None, 0
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            piece = choice.delta.content if hasattr(choice, "delta") else choice.text
            text, pieces = text + (piece or ""), pieces + bool(piece)
            finish = choice.finish_reason or finish
    return text, finish, usage, pieces


@pytest.mark.parametrize("messages", [HI, LONGER], ids=["hi", "longer"])
def test_chat_says_what_generate_makes_of_the_template(site, parts, greedy, messages):
    asked = dict(model="tiny", messages=messages, max_tokens=20, temperature=0)
    answer = site.client.chat.completions.create(**asked)
    plain = [{**m, "content": "Naïve?" if isinstance(m["content"], list) else m["content"]}
             for m in messages]  # fmt: skip
    prompt = parts.chat.encode(plain)
    (choice,) = answer.choices
    assert choice.message.content == greedy(prompt, 20)
    assert (answer.model, choice.finish_reason) == ("tiny", "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 20)
    stream = site.client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    text, finish, usage, pieces = joined(stream)
    assert (text, finish, usage.total_tokens) == (
        choice.message.content, "length", len(prompt) + 20
    )  # fmt: skip
    assert pieces > 5


def test_an_answer_ends_where_the_model_ends_it(parts, site, greedy):
    prompt = parts.chat.encode(HI)
    bias = {"259": 100}
    answer = site.client.chat.completions.create(
        model="tiny", messages=HI, temperature=0, logit_bias=bias, logprobs=True
    )
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("", "stop")
    assert choice.logprobs.content == []
    assert answer.usage.completion_tokens == 1
    whole = greedy(prompt, 20)
    answer = site.client.chat.completions.create(
        model="tiny", messages=HI, temperature=0, max_tokens=20, stop=[whole[6:8], "never there"]
    )
    assert answer.choices[0].message.content == whole[: whole.index(whole[6:8])]
    assert answer.choices[0].finish_reason == "stop"


def test_without_a_limit_an_answer_fills_the_room(site, parts):
    answer = site.client.chat.completions.create(model="tiny", messages=HI, logit_bias={"259": -99})
    assert answer.usage.total_tokens == LIMITS.length
    with pytest.raises(openai.BadRequestError, match="do not fit the 256 tokens") as error:
        site.client.chat.completions.create(model="tiny", messages=HI, max_tokens=LIMITS.length)
    assert error.value.code == "context_length_exceeded"


def test_seeds_say_the_same_again_and_choices_differ(site):
    def say(seed, **more):
        answer = site.client.chat.completions.create(
            model="tiny", messages=HI, max_tokens=12, temperature=1.5, seed=seed, n=3, **more
        )
        return [choice.message.content for choice in answer.choices]

    assert say(-5) == say(-5)
    assert len({*say(1), *say(70)}) == 6
    assert say(1)[1] == say(2)[0]
    assert len(set(say(3, top_p=1e-6))) == 1


def logprobs_of(parts, tokens) -> np.ndarray:
    out = parts.decoder.apply(parts.params, np.array([tokens]))
    return np.asarray(jax.nn.log_softmax(out.logits[0].astype(np.float32)))


def test_log_probabilities_are_the_models(site, parts):
    answer = site.client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    (choice,) = answer.choices
    found = choice.logprobs.content
    raw = bytes(byte for token in found for byte in token.bytes)
    assert raw.decode(errors="replace") == choice.message.content
    prompt = parts.chat.encode(HI)
    ids = [token.bytes for token in found]
    assert len(ids) == 6
    scores = logprobs_of(parts, prompt)[-1]
    assert found[0].logprob == pytest.approx(scores.max(), abs=1e-4)
    assert [t.logprob for t in found[0].top_logprobs] == pytest.approx(
        np.sort(scores)[::-1][:3], abs=1e-4
    )


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_a_prompt_of_token_ids_as_lm_eval_asks(site, parts, stream):
    prompt = parts.tokenizer.encode("The naïve tide").ids
    answer = site.client.completions.create(
        model="tiny", prompt=[prompt], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1,
        stream=stream,
    )  # fmt: skip
    choices = [c for chunk in answer for c in chunk.choices] if stream else answer.choices
    text = "".join(choice.text for choice in choices)
    found = {
        name: [x for c in choices for x in getattr(c.logprobs, name)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    assert text.startswith("The naïve tide")
    assert [len(values) for values in found.values()] == [len(prompt) + 1] * 4
    scores = logprobs_of(parts, prompt)
    want = [scores[i, token] for i, token in enumerate(prompt[1:])]
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:-1] == pytest.approx(want, abs=1e-4)
    best = [max(top.values()) for top in found["top_logprobs"][1:]]
    assert best == pytest.approx(scores.max(-1), abs=1e-4)
    assert best[-1] == found["token_logprobs"][-1]
    assert found["text_offset"][5:10] == [5, 6, 6, 7, 8]  # "ï" has two tokens
    assert found["text_offset"][-1] == len("The naïve tide")


def test_echo_of_nothing_new(site):
    answer = site.client.completions.create(
        model="tiny", prompt="abc", max_tokens=0, logprobs=0, echo=True
    )
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("abc", "length")
    assert choice.logprobs.tokens == ["a", "b", "c"]
    assert answer.usage.completion_tokens == 0


def test_several_prompts_of_several_choices_come_in_order(site, parts, greedy):
    prompts = ["one", "two and more", "three"]
    ids = [parts.tokenizer.encode(p).ids for p in prompts]
    want = [greedy(i, 8) for i in ids for _ in range(2)]
    for prompt in (prompts, ids):
        answer = site.client.completions.create(
            model="tiny", prompt=prompt, max_tokens=8, temperature=0, n=2
        )
        assert [choice.text for choice in answer.choices] == want
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert answer.usage.prompt_tokens == sum(map(len, ids))
        assert answer.usage.completion_tokens == 48


def test_embeddings_are_what_the_embedder_gives_in_both_encodings(site):
    texts = ["a tide", "naïve"]
    embed, tokenizer = site.models["tiny"].embedder, site.models["tiny"].tokenizer
    want = [embed(tokenizer.encode(text).ids) for text in texts]
    for more in ({}, {"encoding_format": "float"}):  # the client asks for base64 by itself
        found = site.client.embeddings.create(model="tiny", input=texts, **more)
        np.testing.assert_allclose([d.embedding for d in found.data], want, rtol=1e-6)
    (found,) = site.client.embeddings.create(model="tiny", input=texts[0], dimensions=5).data
    cut = want[0][:5] / np.linalg.norm(want[0][:5])
    np.testing.assert_allclose(found.embedding, cut, rtol=1e-6)
    with pytest.raises(openai.BadRequestError, match="may have 1 to 32"):
        site.client.embeddings.create(model="tiny", input="x" * 33)


def test_tokens_and_back(site, parts):
    status, found = site.ask("POST", "/tokenize", {"model": "tiny", "prompt": "naïve"})
    assert (status, found["tokens"]) == (200, parts.tokenizer.encode("naïve").ids)
    assert (found["count"], found["max_model_len"]) == (6, LIMITS.length)
    body = {"model": "tiny", "tokens": found["tokens"]}
    assert site.ask("POST", "/detokenize", body) == (200, {"prompt": "naïve"})
    for begins in (True, False):
        body = {"model": "tiny", "messages": HI, "add_generation_prompt": begins}
        want = parts.chat.encode(HI, add_generation_prompt=begins)
        assert site.ask("POST", "/tokenize", body)[1]["tokens"] == want


def test_what_is_served_and_counted(site):
    (model,) = site.client.models.list().data
    assert (model.id, model.object, model.max_model_len) == ("tiny", "model", 256)
    assert site.client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="there is no model 'x/y'"):
        site.client.models.retrieve("x/y")
    assert site.ask("GET", "/health") == (200, {"status": "ok", "failed": {}})
    before = metric(site, 'zoo_generated_tokens_total{model="tiny"}')
    site.client.completions.create(model="tiny", prompt="a", max_tokens=7)
    assert metric(site, 'zoo_generated_tokens_total{model="tiny"}') == before + 7
    assert metric(site, 'zoo_first_token_seconds_bucket{model="tiny",le="+Inf"}') > 0
    published = site.ask("GET", "/openapi.json")[1]
    fields = published["paths"]["/v1/completions"]["post"]["requestBody"]["content"]
    assert "echo" in fields["application/json"]["schema"]["properties"]


def metric(site, name: str) -> float:
    lines = site.ask("GET", "/metrics")[1].splitlines()
    return next((float(x.split(" ")[-1]) for x in lines if x.startswith(name + " ")), 0.0)


def test_a_model_without_a_template_completes_and_does_not_chat(parts):
    base = dataclasses.replace(parts, chat=None)
    with served({"base": start("base", base, LIMITS)}) as site:
        assert site.client.completions.create(model="base", prompt="a").choices[0].text
        with pytest.raises(openai.BadRequestError, match="has no chat template"):
            site.client.chat.completions.create(model="base", messages=HI)


WRONG = [
    ({"messages": []}, "messages", "has 0 items and must have at least 1"),
    ({"messages": "Hi"}, "messages", "must be an array"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role", "is missing"),
    ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role", "must be one of"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages[0].content[0].type", "='image_url' must be one of 'text'"),
    ({"temperature": 2.5}, "temperature", "=2.5 must be at least 0 and at most 2"),
    ({"temperature": "hot"}, "temperature", "='hot' must be a number"),
    ({"temperature": True}, "temperature", "=True must be a number"),
    ({"top_p": 0}, "top_p", "must be above 0 and at most 1"),
    ({"max_tokens": 1.5}, "max_tokens", "must be an integer"),
    ({"max_tokens": 0}, "max_tokens", "must be at least 1"),
    ({"n": 0}, "n", "must be at least 1"),
    ({"stop": [""]}, "stop[0]", "must have at least 1"),
    ({"seed": 2**64}, "seed", "at most"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "the key 'x' and must have token ids as its keys"),
    ({"logit_bias": {"\u0663": 1}}, "logit_bias", "token ids as its keys"),
    ({"logit_bias": {"": 1}}, "logit_bias", "token ids as its keys"),
    ({"logit_bias": {"999": 1}}, "logit_bias", "token 999, outside the vocabulary of 260"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "at most 20"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs=true"),
    ({"response_format": {"type": "xml"}}, "response_format.type",
     "='xml' must be one of 'text', 'json_object', 'regex', 'json_schema'"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
     "response_format.json_schema.schema", "is missing"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "shows no calls"),
    ({"tool_choice": "must"}, "tool_choice", "='must' must be one of 'none', 'auto', 'required'"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function", "is missing"),
    ({"functions": []}, "functions", "is not a field of this request"),
    ({"chat_template_kwargs": {"messages": []}}, None, "must not have messages"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "Unicode text"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "says"), WRONG)
def test_every_field_is_checked_and_named(site, change, param, says):
    status, found = site.ask(
        "POST", "/v1/chat/completions", {"model": "tiny", "messages": HI, **change}
    )
    error = found["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert says in error["message"]


def test_inputs_that_are_none_are_named(site):
    wrong = (
        ("/v1/completions", {"prompt": ["a", [1]]}, "prompt[1]", "=[1] must be a string"),
        ("/v1/completions", {"prompt": [1, "a"]}, "prompt[1]", "='a' must be an integer"),
        ("/v1/completions", {"prompt": [999]}, "prompt", "token 999, outside the vocabulary"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 256}, None, "or make at most 255"),
        ("/v1/embeddings", {"input": [[1], [999]]}, "input", "token 999, outside the vocabulary"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input[1]", "has 0 tokens"),
        ("/v1/embeddings", {"input": "a", "dimensions": 999}, "dimensions", "=999 must be at most"),
        ("/detokenize", {"tokens": [999]}, "tokens", "token 999, outside the vocabulary"),
    )
    for path, body, param, says in wrong:
        status, found = site.ask("POST", path, {"model": "tiny", **body})
        assert (status, found["error"]["param"]) == (400, param)
        assert says in found["error"]["message"]


def test_nothing_is_as_good_as_null(site):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1, "stop": None, "n": None, "top_p": None}
    assert site.ask("POST", "/v1/completions", body)[0] == 200


def test_unknown_models_and_paths_are_named(site):
    with pytest.raises(openai.NotFoundError, match="there is no model 'huge'; there are tiny"):
        site.client.chat.completions.create(model="huge", messages=HI)
    status, found = site.ask("GET", "/v1/engines")
    assert (status, found["error"]["type"]) == (404, "not_found_error")
    assert site.ask("GET", "/v1/completions")[0] == 405
    response, raw = site.raw("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "n": 2})
    assert response.headers["x-zoo-model"] == json.loads(raw)["model"] == "tiny"


def test_no_request_waits_for_a_compiler(parts, compiled):  # noqa: F811
    """Three slots are no other test's, so nothing is compiled yet but what `start` compiles."""
    limits = dataclasses.replace(LIMITS, slots=3, prefix_mib=1)
    model = start("tiny", parts, limits)
    assert compiled
    compiled.clear()
    with served({"tiny": model}, limits) as site:
        ask, chat = site.client.completions.create, site.client.chat.completions.create
        for length in (1, 20, 70, 200):
            ask(model="tiny", prompt="x" * length, n=3, max_tokens=9, logprobs=2, echo=True)
            ask(model="tiny", prompt="x" * length, max_tokens=9, top_p=0.5, presence_penalty=1)
        form = {"response_format": {"type": "regex", "pattern": "[ab]{3}"}}
        for more in ({}, {"top_k": 3}, {"min_p": 0.1}, {"repetition_penalty": 1.2}, form):
            chat(model="tiny", messages=HI, max_tokens=5, logprobs=True, extra_body=more)
        assert chat(model="tiny", messages=HI, max_tokens=1).usage.prompt_tokens_details
        site.client.embeddings.create(model="tiny", input=["a", "b" * 32])
    assert not compiled


def test_a_model_over_two_devices_says_the_same(site, parts):
    mesh = zoo.make_mesh("tensor=2", jax.devices()[:2])
    cfg = parts.decoder.cfg
    placed = jax.device_put(parts.params, shardings(cfg, mesh))
    limits = dataclasses.replace(LIMITS, slots=2, length=64)
    over = start("over", dataclasses.replace(parts, params=placed, mesh=mesh), limits)
    with served({"over": over}, limits) as other:
        asked = dict(messages=HI, max_tokens=8, temperature=0)
        want = site.client.chat.completions.create(model="tiny", **asked)
        found = other.client.chat.completions.create(model="over", **asked)
        assert found.choices[0].message.content == want.choices[0].message.content
        vectors = [
            s.client.embeddings.create(model=name, input="tide").data[0].embedding
            for s, name in ((site, "tiny"), (other, "over"))
        ]
    np.testing.assert_allclose(*vectors, atol=1e-5)
