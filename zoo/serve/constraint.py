"""Answers of a given form: JSON, JSON of a schema, or text of a regular expression.

llguidance (https://github.com/guidance-ai/llguidance) knows after each token which may come next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.serve.errors import ApiError

if TYPE_CHECKING:
    import llguidance

    from zoo.inference.requests import Constraint
    from zoo.serve.model import Model

MOST_CHARACTERS = 100_000
"""Of a schema or an expression."""
SPACE = "[ ]?"
"""Between the parts of JSON: where any white space may stand, models can go on with it for ever."""


class Grammar:
    """A `Constraint` that a grammar makes; for one text."""

    def __init__(self, grammar: str, tokenizer: llguidance.LLTokenizer):
        import llguidance

        self._matcher = llguidance.LLMatcher(tokenizer, grammar)
        self._vocab = tokenizer.vocab_size
        self._check()

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, bool[V]: those that end the text where it may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little")[: self._vocab].astype(bool)

    def accept(self, token: int) -> None:
        """Goes on by the token that was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"response_format: {self._matcher.get_error()}")


def factory(model: Model, form: Mapping[str, Any] | None) -> Callable[[], Constraint | None]:
    """Makes a constraint for each text of a request; None where the form is plain text.

    Raises:
        ApiError: the form cannot be compiled, or llguidance is missing.
    """
    if form is None or form["type"] == "text":
        return lambda: None
    try:
        import llguidance
    except ImportError as e:
        raise ApiError(
            "response_format needs llguidance: pip install 'zoo-jax[serve]'", 501,
            param="response_format",
        ) from e  # fmt: skip
    grammar = _grammar(form)
    if len(grammar) > MOST_CHARACTERS:
        raise ApiError(
            f"response_format has {len(grammar)} characters as a grammar, and may have "
            f"{MOST_CHARACTERS}", param="response_format",
        )  # fmt: skip
    if complaint := llguidance.LLMatcher.validate_grammar(grammar, model.grammar_tokens):
        raise ApiError(f"response_format: {complaint}", param="response_format")
    return lambda: Grammar(grammar, model.grammar_tokens)


def _grammar(form: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    if form["type"] == "regex":
        return LLMatcher.grammar_from_regex(form["pattern"])
    schema = {"type": "object"}
    if form["type"] == "json_schema":
        schema = form["json_schema"]["schema"]
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), {"whitespace_pattern": SPACE})
    except ValueError as e:
        raise ApiError(f"response_format: {e}", param="response_format") from e
