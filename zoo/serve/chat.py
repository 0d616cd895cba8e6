"""/v1/chat/completions: conversations, answered whole or in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.inference.completion import Piece
from zoo.inference.requests import Token
from zoo.serve import tools
from zoo.serve.errors import ApiError
from zoo.serve.events import EventStream, head, headers
from zoo.serve.model import Model
from zoo.serve.server import Server
from zoo.serve.speech import Plan, Speech, begin, plan

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
    return JSONResponse(await _whole(body, speech), headers=headers(speech.model.name))


async def encode(model: Model, body: Body) -> list[int]:
    """Token ids of a conversation, in a thread: templates may take their time.

    Raises:
        ApiError: the model has no template, or it refuses the conversation.
    """
    chat = model.parts.chat
    if chat is None:
        raise ApiError(f"{model.name} has no chat template: ask /v1/completions", param="model")
    messages = [_message(m, f"messages[{i}]") for i, m in enumerate(body["messages"])]
    variables = {"add_generation_prompt": True, **(body.get("chat_template_kwargs") or {})}
    if overridden := variables.keys() & {"messages", "tools", "documents"}:
        raise ApiError(f"chat_template_kwargs must not have {min(overridden)}: it is a field")
    try:
        return await asyncio.to_thread(chat.encode, messages, _tools(body), **variables)
    except ValueError as e:
        raise ApiError(str(e), param="messages") from e


async def _plan(body: Body, model: Model) -> Plan:
    if _tools(body) and _format(model) is None:
        raise ApiError(f"{model.name}'s chat template shows no calls of tools", param="tools")
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    logprobs = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
    return await plan(
        model, body, [await encode(model, body)], most,
        skip_special=not _tools(body), logprobs=logprobs,
    )  # fmt: skip


def _tools(body: Body) -> list[dict] | None:
    return None if body.get("tool_choice") == "none" else body.get("tools") or None


def _format(model: Model) -> tools.Format | None:
    return tools.format_of("\n".join(t.text for t in model.parts.chat.templates.values()))


def _content(message: Mapping) -> str:
    """A message's text; parts are joined as they come."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _message(message: Mapping, where: str) -> dict[str, Any]:
    """A message as templates read it: content a text, arguments of calls objects."""
    found = {**message, "role": message["role"].replace("developer", "system")}
    if message.get("content") is not None:
        found["content"] = _content(message)
    if message.get("tool_calls"):
        found["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message["tool_calls"])
        ]
        found.setdefault("content", "")
    return found


def _call(call: Mapping, where: str) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError as e:
        raise ApiError(
            f"{where}.function.arguments is not JSON: {e}", param=f"{where}.function.arguments"
        ) from e
    return {**call, "function": {**function, "arguments": arguments}}


class _Choice:
    """What is said of one answer: text, calls and why it ended."""

    def __init__(self, form: tools.Format | None):
        self._reader = form and tools.Reader(form)

    def read(self, piece: Piece) -> tuple[str, list[tools.Call], str | None]:
        if self._reader is None:
            return piece.text, [], piece.finish
        text, calls, finish = self._reader.push(piece.text), [], piece.finish
        if finish:
            rest, calls = self._reader.end()
            text, finish = text + rest, "tool_calls" if calls else finish
        return text, calls, finish


def _choices(body: Body, speech: Speech) -> list[_Choice]:
    form = _format(speech.model) if _tools(body) else None
    return [_Choice(form) for _ in speech.completions]


async def _whole(body: Body, speech: Speech) -> dict[str, Any]:
    choices = _choices(body, speech)
    found: list[dict[str, Any]] = [
        {"text": "", "calls": [], "finish": None, "tokens": []} for _ in choices
    ]
    async for i, piece in speech.pieces():
        text, calls, found[i]["finish"] = choices[i].read(piece)
        found[i]["text"] += text
        found[i]["calls"] += calls
        found[i]["tokens"] += piece.tokens
    return {
        **head("chat.completion", "chatcmpl", speech.model.name),
        "choices": [
            {
                "index": i,
                "message": _answer(one["text"], one["calls"]),
                "logprobs": _logprobs(body, speech, one["tokens"]),
                "finish_reason": one["finish"],
            }
            for i, one in enumerate(found)
        ],
        "usage": speech.usage,
    }


def _answer(text: str, calls: Sequence[tools.Call]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text or None, "tool_calls": [call.openai() for call in calls]}
    return message


async def _events(body: Body, speech: Speech) -> AsyncIterator[dict[str, Any]]:
    """Chunks: each choice's role, then its text, its calls, and why it ended."""
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
            text, calls, finish = choices[i].read(piece)
            logprobs = _logprobs(body, speech, piece.tokens) if piece.tokens else None
            if text or (logprobs and logprobs["content"]):
                yield chunk(i, {"content": text}, None, logprobs)
            if calls:
                deltas = [{"index": j, **call.openai()} for j, call in enumerate(calls)]
                yield chunk(i, {"tool_calls": deltas})
            if finish:
                yield chunk(i, {}, finish)
    if usage:
        yield {**start, "choices": [], "usage": speech.usage}


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
