"""/v1/completions: texts or token ids continued, with log-probabilities of prompts if asked."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.inference.requests import Token
from zoo.serve.chat import CONVERSATION
from zoo.serve.errors import ApiError
from zoo.serve.events import EventStream, head, headers
from zoo.serve.model import Model
from zoo.serve.server import Server
from zoo.serve.speech import Plan, Speech, begin, known, plan

DEFAULT_TOKENS = 16
"""What OpenAI makes where max_tokens is not given."""

Body = Mapping[str, Any]
Prompt = str | list[int]


async def answer(server: Server, body: Body, request: Request) -> Response:
    """The response to a body that fits `fields.COMPLETION`."""
    if (body.get("best_of") or body.get("n") or 1) != (body.get("n") or 1):
        raise ApiError("best_of must equal n: all that is made is returned", param="best_of")
    prompts = split(body["prompt"])
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    models = server.order(
        body["model"], texts[0] if texts else "", sum(map(len, prompts)),
        request.headers.get(CONVERSATION),
    )  # fmt: skip
    if body.get("seed") is None:
        body = {**body, "seed": secrets.randbits(32)}  # whichever model answers
    speech = await begin(server, models, partial(_plan, body, prompts))
    echoes = [_Echo(body, speech, prompts, i) for i in range(len(speech.jobs))]
    if body.get("stream"):
        return EventStream(_events(body, speech, echoes), speech)
    return await _whole(speech, echoes)


def split(said: str | list) -> list[Prompt]:
    """One prompt or several, of either kind, as several."""
    if isinstance(said, str) or isinstance(said[0], int):
        return [said]
    return said


async def encode(
    model: Model, prompt: Prompt, where: str = "prompt", add_special_tokens: bool = True
) -> list[int]:
    """Token ids of a prompt, in a thread where it is a text.

    Raises:
        ApiError: it is too long, or the model has no such token: it names the field `where`.
    """
    if not isinstance(prompt, str):
        known(model, prompt[: model.length + 1], where)  # longer ones do not fit anyway
        return prompt
    return await asyncio.to_thread(model.encode, prompt, add_special_tokens)


async def _plan(body: Body, prompts: Sequence[Prompt], model: Model) -> Plan:
    said = body.get("max_tokens")
    most, scored = DEFAULT_TOKENS if said is None else said, _scores_prompt(body)
    if most == 0 and not scored:
        raise ApiError("max_tokens=0 needs echo and logprobs: else there is nothing to answer",
                       param="max_tokens")  # fmt: skip
    tokens = [await encode(model, prompt) for prompt in prompts]
    return await plan(
        model, body, tokens, most, logprobs=body.get("logprobs"), prompt_logprobs=scored
    )


def _scores_prompt(body: Body) -> bool:
    return bool(body.get("echo")) and body.get("logprobs") is not None


class _Echo:
    """One text of the answer: what it begins with, and the log-probabilities of its tokens."""

    def __init__(self, body: Body, speech: Speech, prompts: Sequence[Prompt], i: int):
        self._body, self._model, self._job = body, speech.model, speech.jobs[i]
        self._scored = body.get("logprobs") is not None
        prompt = prompts[i // (len(speech.jobs) // len(prompts))]
        # Of a character that several tokens make up, all begin where it does.
        self._characters, self._offset = codecs.getincrementaldecoder("utf-8")("replace"), 0
        self.text = ""
        if body.get("echo"):
            self.text = prompt if isinstance(prompt, str) else self._decoded(prompt)

    def begin(self) -> tuple[str, list[Token]]:
        """The prompt, if it is echoed, and its tokens, if they are scored."""
        return self.text, self._prompt_tokens() if _scores_prompt(self._body) else []

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """OpenAI's four lists for the next tokens of this text."""
        if not self._scored:
            return None
        spelling, offsets = self._model.spelling, []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._characters.decode(spelling.bytes(token.id)))
        return {
            "tokens": [spelling.text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """The likeliest tokens and the one that is there; None for a first token."""
        if token.logprob is None:
            return None
        text = self._model.spelling.text
        return {**{text(id): logprob for id, logprob in token.top}, text(token.id): token.logprob}

    def _prompt_tokens(self) -> list[Token]:
        ids, scored = self._job.ticket.request.prompt, self._job.ticket.prompt_logprobs
        return [Token(id) if t is None else t for id, t in zip(ids, scored, strict=True)]

    def _decoded(self, prompt: list[int]) -> str:
        return self._model.tokenizer.decode(prompt, skip_special_tokens=False)


async def _whole(speech: Speech, echoes: Sequence[_Echo]) -> JSONResponse:
    texts, tokens = [""] * len(echoes), [[] for _ in echoes]
    finish: list[str | None] = [None] * len(echoes)
    async for i, piece in speech.pieces():
        texts[i] += piece.text
        tokens[i] += piece.tokens
        finish[i] = piece.finish

    def made(i: int) -> dict[str, Any]:
        text, prompt = echoes[i].begin()
        logprobs = echoes[i].logprobs([*prompt, *tokens[i]])
        return _choice(i, text + texts[i], logprobs, finish[i])

    def response() -> JSONResponse:
        start = head("text_completion", "cmpl", speech.model.name)
        choices = [made(i) for i in range(len(echoes))]
        answer = {**start, "choices": choices, "usage": speech.usage}
        return JSONResponse(answer, headers=headers(speech.model.name))

    return await asyncio.to_thread(response)  # many log-probabilities take their time


async def _events(
    body: Body, speech: Speech, echoes: Sequence[_Echo]
) -> AsyncIterator[dict[str, Any]]:
    start = head("text_completion", "cmpl", speech.model.name)
    usage = (body.get("stream_options") or {}).get("include_usage")
    begun = set()
    async with contextlib.aclosing(speech.pieces()) as pieces:
        async for i, piece in pieces:
            text, tokens = ("", []) if i in begun else echoes[i].begin()
            begun.add(i)
            logprobs = echoes[i].logprobs([*tokens, *piece.tokens])
            choice = _choice(i, text + piece.text, logprobs, piece.finish)
            yield {**start, "choices": [choice], **({"usage": None} if usage else {})}
    if usage:
        yield {**start, "choices": [], "usage": speech.usage}


def _choice(i: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
    return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": finish}
