"""From a body to requests, and from what the engine makes to pieces of text as they come."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from zoo.inference.completion import Busy, Completion, EngineFailed, Piece
from zoo.inference.requests import Request
from zoo.serve.constraint import FormFailed, Restrict, by_format
from zoo.serve.errors import ApiError
from zoo.serve.model import Model
from zoo.serve.server import Server

RETRY_AFTER = "1"
"""Seconds after which a client that was told 429 may try again."""


@dataclass(frozen=True)
class Plan:
    """What a body asks of one model.

    Attributes:
        prompts: token ids of each.
        requests: `n` of each prompt, those of a prompt together.
        stop: strings that end a text.
        skip_special: leave special tokens out of it.
    """

    prompts: list[list[int]]
    requests: list[Request]
    stop: tuple[str, ...] = ()
    skip_special: bool = True


async def plan(model: Model, body: Mapping[str, Any], *args: Any, **options: Any) -> Plan:
    """The requests of a body, made in a thread: grammars may take their time to compile.

    Args:
        model: which would answer.
        body: checked by its schema.
        *args: prompts, as token ids, and how many new tokens each gets at most; None is as many
            as fit.
        **options: `skip_special` as in `Plan`; `restrict` makes what holds the answers to a form,
            by default `response_format`; and others of `Request`.

    Raises:
        ApiError: they don't fit the model.
    """
    return await asyncio.to_thread(_plan, model, body, *args, **options)


def _plan(
    model: Model,
    body: Mapping[str, Any],
    prompts: Sequence[list[int]],
    most: int | None,
    *,
    restrict: Callable[[], Restrict] | None = None,
    skip_special: bool = True,
    **options: Any,
) -> Plan:
    stop, count, requests = body.get("stop") or (), body.get("n") or 1, []
    seed = body.get("seed")
    seed = secrets.randbits(32) if seed is None else seed
    shared = {**_options(model, body), **options}
    if restrict is None:
        restrict = partial(by_format, model, body.get("response_format"))
    constraint = restrict()
    for prompt in prompts:
        limit = _limit(model, prompt, most)
        for i in range(count):
            try:
                request = Request(
                    tuple(prompt), limit, seed=(seed + i) % 2**32, constraint=constraint(), **shared
                )
            except ValueError as e:
                raise ApiError(str(e)) from e
            requests.append(request)
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    return Plan(list(prompts), requests, stop, skip_special)


def _options(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
             "repetition_penalty")  # fmt: skip
    said = {name: body[name] for name in names if body.get(name) is not None}
    found = {**model.sampling, **said}
    for name, nothing in (("top_k", (-1, 0)), ("min_p", (0,)), ("top_p", (1,))):
        if found.get(name) in nothing:
            del found[name]
    found["logit_bias"] = _bias(model, body.get("logit_bias") or {})
    found["stop_tokens"] = model.eos
    return found


def _bias(model: Model, said: Mapping[str, float]) -> dict[int, float]:
    for token in said:
        if not (token.isascii() and token.isdigit() and len(token) < 20):
            raise ApiError(
                f"logit_bias has the key {token[:80]!r} and must have token ids as its keys, as "
                "/tokenize gives them",
                param="logit_bias",
            )
    found = {int(token): bias for token, bias in said.items()}
    known(model, found, "logit_bias")
    return found


def known(model: Model, tokens: Collection[int], where: str) -> None:
    """Raises ApiError, which names the field `where`, unless the model has all tokens."""
    size = model.parts.decoder.cfg.vocab_size
    for token in tokens:
        if not 0 <= token < size:
            raise ApiError(
                f"{where} has token {token}, outside the vocabulary of {size}: was it made by "
                "another tokenizer?",
                param=where,
            )


def _limit(model: Model, prompt: Sequence[int], most: int | None) -> int:
    if not prompt:
        raise ApiError("the prompt has no tokens: begin it with at least one", param="prompt")
    room = model.length - len(prompt)
    if room < (1 if most is None else most):
        asked = "" if most is None else f" and {most} to make"
        remedy = "shorten the prompt" + (f", or make at most {room}" if room > 0 else "")
        raise ApiError(
            f"{len(prompt)} tokens of prompt{asked} do not fit the {model.length} tokens that "
            f"{model.name} has room for: {remedy}",
            code="context_length_exceeded",
        )
    return room if most is None else most


class Speech:
    """The answers of a model to a plan, as they come; closing it frees their slots.

    Attributes:
        completions: one for each request of the plan.
        seconds: that all of it may take.
    """

    def __init__(self, server: Server, model: Model, plan: Plan, began: float):
        """Submits the plan.

        Raises:
            Busy, EngineFailed, ValueError: as `Runner.submit`.
        """
        self.model, self.plan = model, plan
        self.jobs = model.runner.submit(plan.requests)
        self._server, self._began = server, began
        self.seconds = server.settings.timeout
        self.completions = [
            Completion(job, model.tokenizer, stop=plan.stop, skip_special=plan.skip_special)
            for job in self.jobs
        ]
        self._pieces = self._read()
        self._first: tuple[int, Piece] | None = None

    async def start(self) -> None:
        """Waits until there is something to send; before that another model can be tried.

        Raises:
            EngineFailed: the engine has failed meanwhile, whatever was said until then.
            ApiError: as `pieces`.
        """
        self._first = await anext(self._pieces)
        try:
            for job in self.jobs:
                job.check()
        except EngineFailed:
            await self._pieces.aclose()
            raise
        self._observe("zoo_first_token_seconds")

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Indices into `completions`, and what is new of them.

        Raises:
            ApiError: it took too long, the server stops, or the engine failed.
        """
        async with contextlib.aclosing(self._pieces):
            if self._first is not None:
                yield self._first
            async for item in self._pieces:
                yield item
        self._observe("zoo_answer_seconds")

    async def _read(self) -> AsyncIterator[tuple[int, Piece]]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.seconds
        try:
            while not all(answer.finish for answer in self.completions):
                due = self.model.pulse.next
                for i, answer in enumerate(self.completions):
                    if answer.finish is None and any(piece := answer.read()):
                        yield i, piece
                going = [answer.job for answer in self.completions if answer.finish is None]
                if going and not any(job.done for job in going):  # those fail when read again
                    async with asyncio.timeout_at(min(deadline, self._server.ends)):
                        await due.wait()
        except TimeoutError:
            if loop.time() >= self._server.ends:
                raise ApiError("the server stops before the answer is whole", 503) from None
            raise ApiError(f"the answer took more than {self.seconds:g} s", 504) from None
        except EngineFailed as e:
            raise failed(self.model, e) from e
        finally:
            self.close()
            for answer in self.completions:
                why = answer.finish or "cancelled"
                self._server.metrics.add("zoo_answers_total", model=self.model.name, finish=why)

    def close(self) -> None:
        """Frees the slots of what is not finished."""
        for answer in self.completions:
            answer.cancel()

    def _observe(self, name: str) -> None:
        elapsed = time.monotonic() - self._began
        self._server.metrics.observe(name, elapsed, model=self.model.name)

    @property
    def usage(self) -> dict[str, Any]:
        read = sum(map(len, self.plan.prompts))
        made = sum(answer.tokens for answer in self.completions)
        each = len(self.jobs) // len(self.plan.prompts)
        cached = sum(job.ticket.cached_tokens for job in self.jobs[::each])
        return {
            "prompt_tokens": read,
            "completion_tokens": made,
            "total_tokens": read + made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


async def begin(
    server: Server, models: Sequence[Model], prepare: Callable[[Model], Awaitable[Plan]]
) -> Speech:
    """The speech of the first of some models that has begun to answer.

    Raises:
        ApiError: none of them does; it says why the first does not.
    """
    began, errors = time.monotonic(), []
    for model in models:
        try:
            speech = Speech(server, model, await prepare(model), began)
            await speech.start()
            return speech
        except Busy as e:
            errors.append(ApiError(f"{model.name} is busy: {e}", 429, code="queue_full",
                                   headers={"Retry-After": RETRY_AFTER}))  # fmt: skip
        except EngineFailed as e:
            errors.append(failed(model, e))
        except ValueError as e:
            errors.append(ApiError(str(e)))
        except ApiError as e:
            errors.append(e)
    raise errors[0]


def failed(model: Model, error: EngineFailed) -> ApiError:
    """What a client is told of its own grammar, or of a failed engine: of that the log has more."""
    if isinstance(error.__cause__, FormFailed):
        return ApiError(str(error))
    gone = model.runner.failure is not None
    return ApiError(f"{model.name} failed while it answered: {error}", 503 if gone else 500,
                    code="engine_failed")  # fmt: skip
