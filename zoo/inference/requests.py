"""What an engine is asked and what it answers: requests, tokens as they come, and a ticket.

All of it is host data, so that a server needs no jax to hold it.
"""

from __future__ import annotations

import collections
import math
import operator
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from zoo.inference import sampling

MOST_LOGPROBS = 20
"""Alternatives of a token that can be asked for."""


class Constraint(Protocol):
    """What restricts a text token by token: a grammar, a schema, a regular expression."""

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, bool[V]; none where the text has to end."""

    def accept(self, token: int) -> None:
        """Goes on by the token that was chosen."""


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: tokens to make at most; 0 only reads, for `prompt_logprobs`.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_k: sample from the k likeliest tokens only.
        top_p: sample from the fewest tokens that hold this much probability only.
        min_p: sample from tokens at least this fraction as likely as the likeliest only.
        seed: of the text's random numbers. Tokens follow from the parameters, the prompt, these
            options and the seed, whoever else is served.
        stop_tokens: tokens that end the text; the one that did is its last.
        presence_penalty: subtracted from the logit of each token that was made before.
        frequency_penalty: subtracted once for every time that it was.
        repetition_penalty: divides positive logits of tokens of the prompt and of the text made so
            far, multiplies negative ones (CTRL, arXiv:1909.05858).
        logit_bias: what to add to the logits of tokens.
        logprobs: how many likeliest tokens to name beside each one made, with log-probabilities;
            0 gives the token's own, None gives none. They are the model's, before any option.
        prompt_logprobs: the same for the tokens of the prompt.
        constraint: what restricts the text; used by this request only.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0
    stop_tokens: tuple[int, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: bool = False
    constraint: Constraint | None = None

    def __post_init__(self):
        self._plain()
        sampling.from_options(self.temperature, self.top_k, self.top_p, self.min_p)
        if not self.prompt:
            raise ValueError("prompt is empty: start it with at least one token (bos, say)")
        fewest = 0 if self.prompt_logprobs else 1
        if self.max_new_tokens < fewest:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least {fewest}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be at least 0 and below 2**32")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise ValueError(f"logprobs={self.logprobs} must be 0 to {MOST_LOGPROBS}, or None")
        if self.repetition_penalty < sampling.LEAST:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must be positive; 1 is none"
            )

    def _plain(self) -> None:
        """Makes all values Python's own, as a wrong one would end a step, and the others with it.

        So they can also be told to other processes.
        """
        found: dict[str, Any] = {}
        for name in ("prompt", "stop_tokens"):
            found[name] = _token_ids(name, getattr(self, name))
        for name in _WHOLE:
            if (value := getattr(self, name)) is not None or name not in _OPTIONAL:
                found[name] = sampling.whole(name, value)
        for name in _NUMBERS:
            if (value := getattr(self, name)) is not None or name not in _OPTIONAL:
                found[name] = sampling.number(name, value)
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias={self.logit_bias!r} must be a dict of tokens and numbers")
        tokens = _token_ids("logit_bias", self.logit_bias)
        biases = zip(tokens, self.logit_bias.values(), strict=True)
        found["logit_bias"] = {
            token: bias if bias == -math.inf else sampling.number(f"logit_bias[{token}]", bias)
            for token, bias in biases
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)


_WHOLE = "max_new_tokens", "top_k", "seed", "logprobs"
_NUMBERS = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip
_OPTIONAL = "top_k", "top_p", "min_p", "logprobs"


def _token_ids(name: str, tokens: Iterable[Any]) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, tokens))
    except TypeError:
        raise ValueError(f"{name}={tokens!r:.60} must be token ids: whole numbers") from None


def allowed_next(request: Request, made: int, vocab: int) -> np.ndarray:
    """The tokens that a request's constraint and its `logit_bias` let come next, bool[V].

    Args:
        request: that has a constraint.
        made: tokens that it has so far.
        vocab: V.

    Raises:
        ValueError: the constraint allows nothing to begin with, or nothing that has no bias of
            -inf, or says something else than it should.
    """
    allowed = np.array(request.constraint.allowed(), bool)
    if allowed.shape != (vocab,):
        raise ValueError(
            f"constraint.allowed() has shape {allowed.shape}: it must have one value for each "
            f"of the {vocab} tokens"
        )
    if not allowed.any():
        if not made:
            raise ValueError("constraint.allowed() has no token that the text could begin with")
        return allowed
    one = allowed.argmax()
    allowed[[token for token, bias in request.logit_bias.items() if bias == -math.inf]] = False
    if not allowed.any():
        raise ValueError(
            f"logit_bias is -inf for all that constraint allows after {made} new tokens, "
            f"token {one} for one: take one of them out"
        )
    return allowed


class Token(NamedTuple):
    """One token of a text.

    Attributes:
        id: the token.
        logprob: its log-probability, if the request asked.
        top: the likeliest tokens there and their log-probabilities, likeliest first.
        finish: on the last token why it is: "stop" or "length".
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: str | None = None


class Ticket:
    """The place of a request in an engine. Every method can be called from any thread.

    Attributes:
        request: what was asked.
        done: nothing more will come.
        error: why the text ended early, if it did.
        passed: requests that came later and were seated before it.
        cached_tokens: tokens of the prompt that did not have to be read.
        guessed_tokens: tokens that a draft guessed.
        accepted_tokens: those of them that were said.
        prompt_logprobs: once the prompt is read and if asked for, a `Token` for each of the
            prompt's; None for the first, which nothing predicts.
    """

    def __init__(self, request: Request):
        self.request = request
        self.done = False
        self.error: Exception | None = None
        self.passed = 0
        self.cached_tokens = self.guessed_tokens = self.accepted_tokens = 0
        self.prompt_logprobs: list[Token | None] | None = None
        self._tokens: collections.deque[Token] = collections.deque()
        self._cancelled = threading.Event()

    def drain(self) -> list[Token]:
        """The tokens that came since the last call; never waits."""
        return [self._tokens.popleft() for _ in range(len(self._tokens))]

    def cancel(self) -> None:
        """Ends the text; the engine frees its slot at the next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def put(self, token: Token) -> None:
        """Adds a token; for the engine."""
        self._tokens.append(token)

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come; for the engine."""
        self.error = error
        self.done = True


@dataclass(frozen=True)
class Stats:
    """What an engine does and did. Tokens and hits are counted since it began.

    Attributes:
        slots: texts that fit at a time.
        active: slots in use.
        waiting: requests that have none yet.
        requests: ended ones, cancelled and failed ones included.
        generated_tokens: tokens made.
        prompt_tokens: tokens of prompts whose reading began.
        cached_tokens: those of them that were found in the prefix cache.
        guessed_tokens: tokens that a draft guessed.
        accepted_tokens: those of them that were said.
        prefix_hits: requests for which any were.
        held_bytes: of the pages that texts and the prefix cache hold, each counted once.
        prefix_bytes: bytes that the prefix cache holds, also with others.
    """

    slots: int
    active: int = 0
    waiting: int = 0
    requests: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    prefix_hits: int = 0
    held_bytes: int = 0
    prefix_bytes: int = 0
