"""/v1/chat/completions: conversations, answered whole or in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.inference.completion import Piece
from zoo.inference.requests import Token
from zoo.serve.constraint import Restrict, by_format, by_tools
from zoo.serve.errors import ApiError
from zoo.serve.events import EventStream, head, headers
from zoo.serve.model import Model
from zoo.serve.schema import parse
from zoo.serve.server import Server
from zoo.serve.speech import Plan, Speech, begin, plan
from zoo.serve.telling import Call, Delta
from zoo.serve.thoughts import Counter, Splitter, Thinks
from zoo.serve.tools import Reader, properties

CONVERSATION = "x-conversation-id"
"""A header; its requests go to one model as long as a route can."""

Body = Mapping[str, Any]


async def answer(server: Server, body: Body, request: Request) -> Response:
    """The response to a body that fits `fields.CHAT`."""
    texts = [_content(message) for message in body["messages"]]
    first = next((i for i, m in enumerate(body["messages"]) if m["role"] == "user"), 0)
    began = json.dumps(texts[: first + 1])
    models = server.order(
        body["model"], texts[first], sum(map(len, texts)), request.headers.get(CONVERSATION, began)
    )
    speech = await begin(server, models, partial(_plan, body))
    if body.get("stream"):
        return EventStream(_events(body, speech), speech)
    return await _whole(body, speech)


async def encode(model: Model, body: Body) -> list[int]:
    """Token ids of a conversation, in a thread: templates may take their time.

    Raises:
        ApiError: the model has no template, or it refuses the conversation.
    """
    return await asyncio.to_thread(_encode, model, body)


def _encode(model: Model, body: Body) -> list[int]:
    chat = model.parts.chat
    if chat is None:
        raise ApiError(f"{model.name} has no chat template: ask /v1/completions", param="model")
    messages = [_message(m, f"messages[{i}]") for i, m in enumerate(body["messages"])]
    variables = {"add_generation_prompt": True, **(body.get("chat_template_kwargs") or {})}
    if body.get("reasoning_effort"):
        variables.setdefault("reasoning_effort", body["reasoning_effort"])
    if overridden := variables.keys() & {"messages", "tools", "documents"}:
        raise ApiError(f"chat_template_kwargs must not have {min(overridden)}: it is a field")

    def encoded(messages: Sequence[Mapping]) -> list[int]:
        return model.encode(chat.render(messages, tools=_tools(body), **variables), False)

    try:
        return encoded(messages)
    except ValueError as e:
        refusal = ApiError(str(e), param="messages")
        refusal.__cause__ = e
    calls = [m.get("tool_calls") or [] for m in body["messages"]]
    if any(calls):  # DeepSeek's templates take arguments as texts, others as objects
        texts = [{**m, "tool_calls": c} if c else m for m, c in zip(messages, calls, strict=True)]
        with contextlib.suppress(ValueError):
            return encoded(texts)
    raise refusal


async def _plan(body: Body, model: Model) -> Plan:
    prompt = await encode(model, body)
    how = model.thinks(prompt)
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise ApiError("top_logprobs needs logprobs=true", param="top_logprobs")
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    logprobs = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
    return await plan(
        model, body, [prompt], most, logprobs=logprobs,
        restrict=_restrict(body, model, how),
        skip_special=not (_tools(body) or (how and model.hides(how.marks))),
    )  # fmt: skip


def _restrict(body: Body, model: Model, how: Thinks | None) -> Callable[[], Restrict]:
    """Makes what holds answers to the calls or to the form that a body asks for.

    Raises:
        ApiError: it asks for what the model or its tools do not have.
    """
    given, choice = _tools(body), body.get("tool_choice") or "auto"
    if choice not in ("auto", "none") and not given:
        raise ApiError("tool_choice needs tools to choose from", param="tool_choice")
    if given and model.calls is None:
        raise ApiError(f"{model.name}'s chat template shows no calls of tools", param="tools")
    form = body.get("response_format") or {"type": "text"}
    form = None if form["type"] == "text" else form
    needed, several = choice not in ("auto", "none"), body.get("parallel_tool_calls") is not False
    if isinstance(choice, Mapping):
        given, several = _chosen(given, choice["function"]["name"]), False
    strict = any(tool["function"].get("strict") for tool in given or ())
    if given and (needed or strict or form or not several):
        return partial(by_tools, model, given, form, how, needed=needed, several=several)
    return partial(by_format, model, form, how)


def _chosen(given: Sequence[Mapping], name: str) -> list[Mapping]:
    found = [tool for tool in given if tool["function"]["name"] == name]
    if not found:
        known = ", ".join(tool["function"]["name"] for tool in given)
        raise ApiError(
            f"tool_choice names {name[:80]!r}, which is none of the tools: {known}",
            param="tool_choice.function.name",
        )
    return found


def _tools(body: Body) -> list[dict] | None:
    return None if body.get("tool_choice") == "none" else body.get("tools") or None


def _content(message: Mapping) -> str:
    """A message's text; parts are joined as they come."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _message(message: Mapping, where: str) -> dict[str, Any]:
    """A message as templates read it: content a text, arguments of calls objects."""
    found = {**message, "role": message["role"].replace("developer", "system")}
    if message.get("content") is not None:
        found["content"] = _content(message)
    elif message["role"] != "assistant":
        raise ApiError(f"{where}.content is missing", param=f"{where}.content")
    elif not message.get("tool_calls"):
        found["content"] = ""
    if message.get("tool_calls"):
        found["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message["tool_calls"])
        ]
        found.setdefault("content", "")
    return found


def _call(call: Mapping, where: str) -> dict[str, Any]:
    function = call["function"]
    arguments = parse(function["arguments"] or "{}", f"{where}.function.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


class _Said(NamedTuple):
    """What is new of an answer; its calls come with the end, and what is new of them before."""

    thought: str
    text: str
    deltas: Sequence[Delta]
    calls: Sequence[Call]
    finish: str | None


class _Choice:
    """One answer: its thought, its text, its calls and why it ended."""

    def __init__(self, body: Body, speech: Speech):
        model, plan = speech.model, speech.plan
        how, given = model.thinks(plan.prompts[0]), _tools(body)
        self._thoughts = how and Splitter(how)
        self._counter = how and Counter(how, model.tokenizer, plan.skip_special)
        self._calls = given and Reader(model.calls, properties(given))

    @property
    def thought_tokens(self) -> int:
        return self._counter.tokens if self._counter else 0

    def read(self, piece: Piece) -> _Said:
        thought, text, deltas, calls, finish = "", piece.text, [], [], piece.finish
        if self._thoughts:
            self._counter.push(token.id for token in piece.tokens)
            thought, text = self._thoughts.push(text)
            if finish:
                last, rest = self._thoughts.end()
                thought, text = thought + last, text + rest
        if self._calls:
            text = self._calls.push(text)
            if finish:
                rest, calls = self._calls.end()
                text += rest
                finish = "tool_calls" if calls and finish == "stop" else finish
            deltas = self._calls.deltas()
        return _Said(thought, text, deltas, calls, finish)


def _choices(body: Body, speech: Speech) -> list[_Choice]:
    return [_Choice(body, speech) for _ in speech.completions]


async def _whole(body: Body, speech: Speech) -> JSONResponse:
    choices = _choices(body, speech)
    said: list[list[_Said]] = [[] for _ in choices]
    tokens: list[list[Token]] = [[] for _ in choices]
    async for i, piece in speech.pieces():
        said[i].append(choices[i].read(piece))
        tokens[i] += piece.tokens

    def made(i: int) -> dict[str, Any]:
        return {
            "index": i,
            "message": _answer(said[i]),
            "logprobs": _logprobs(body, speech, tokens[i]),
            "finish_reason": said[i][-1].finish,
        }

    def response() -> JSONResponse:
        answer = {
            **head("chat.completion", "chatcmpl", speech.model.name),
            "choices": [made(i) for i in range(len(choices))],
            "usage": _usage(speech, choices),
        }
        return JSONResponse(answer, headers=headers(speech.model.name))

    return await asyncio.to_thread(response)  # many log-probabilities take their time


def _usage(speech: Speech, choices: Sequence[_Choice]) -> dict[str, Any]:
    thought = sum(choice.thought_tokens for choice in choices)
    return {**speech.usage, "completion_tokens_details": {"reasoning_tokens": thought}}


def _answer(said: Sequence[_Said]) -> dict[str, Any]:
    text, thought = "".join(s.text for s in said), "".join(s.thought for s in said)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if thought:
        message["reasoning_content"] = thought
    if calls := [call.openai() for s in said for call in s.calls]:
        message |= {"content": text or None, "tool_calls": calls}
    return message


async def _events(body: Body, speech: Speech) -> AsyncIterator[dict[str, Any]]:
    """Chunks: each choice's role, then its thought, its text, its calls, and why it ended."""
    start = head("chat.completion.chunk", "chatcmpl", speech.model.name)
    usage = (body.get("stream_options") or {}).get("include_usage")
    choices = _choices(body, speech)

    def chunk(i: int, delta: dict, finish: str | None = None, logprobs: Any = None) -> dict:
        choice = {"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**start, "choices": [choice], **({"usage": None} if usage else {})}

    for i in range(len(choices)):
        yield chunk(i, {"role": "assistant", "content": ""})
    async with contextlib.aclosing(speech.pieces()) as pieces:
        async for i, piece in pieces:
            said = choices[i].read(piece)
            logprobs = _logprobs(body, speech, piece.tokens) if piece.tokens else None
            if said.thought:
                yield chunk(i, {"reasoning_content": said.thought}, None, logprobs)
                logprobs = None
            if said.text or (logprobs and logprobs["content"]):
                yield chunk(i, {"content": said.text}, None, logprobs)
            if said.deltas:
                yield chunk(i, {"tool_calls": [delta.openai() for delta in said.deltas]})
            if said.finish:
                yield chunk(i, {}, said.finish)
    if usage:
        yield {**start, "choices": [], "usage": _usage(speech, choices)}


def _logprobs(body: Body, speech: Speech, tokens: Sequence[Token]) -> dict[str, Any] | None:
    """Of the tokens of the text, without the one that ended it."""
    if not body.get("logprobs"):
        return None
    spelling = speech.model.spelling

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = list(spelling.bytes(token))
        return {"token": spelling.text(token), "logprob": logprob, "bytes": raw}

    ends = speech.model.eos
    return {
        "content": [
            {**entry(t.id, t.logprob), "top_logprobs": [entry(*pair) for pair in t.top]}
            for t in tokens
            if not (t.finish == "stop" and t.id in ends)
        ],
        "refusal": None,
    }
