"""Answers of a given form: JSON, JSON of a schema, text of a regular expression, calls of tools.

llguidance (https://github.com/guidance-ai/llguidance) knows after each token which may come next.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.serve import calling
from zoo.serve.errors import ApiError
from zoo.serve.thoughts import Thinks

if TYPE_CHECKING:
    from zoo.inference.requests import Constraint
    from zoo.serve.model import Model, Parts

MOST_CHARACTERS = 100_000
"""Of a schema or an expression."""
MOST_SHOWN = 500
"""Of what is wrong with it."""
MOST_FUEL = 200_000
"""Work of llguidance's lexer before a first token: its default of five times as much takes seconds,
and no form that we saw asked for needs more."""


class FormFailed(ValueError):
    """A grammar that was compiled cannot go on."""


class Grammar:
    """A `Constraint` that a grammar makes; for one text.

    Attributes:
        text: the grammar.
    """

    def __init__(self, grammar: str, parts: Parts):
        """Raises FormFailed where it is too large."""
        import llguidance

        self.text = grammar
        limits = llguidance.LLParserLimits(initial_lexer_fuel=MOST_FUEL, verbose_errors=False)
        self._matcher = llguidance.LLMatcher(
            parts.grammar_tokens, grammar, limits=limits, log_level=0
        )
        self._vocab = parts.decoder.cfg.vocab_size
        self._check()

    def copy(self) -> Grammar:
        """The same for another text, which begins where this one is."""
        made = copy.copy(self)
        made._matcher = self._matcher.deep_copy()
        return made

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
            error = self._matcher.get_error().partition("\n<")[0]
            raise FormFailed(f"the answer cannot be held to its form, make that simpler: {error}")


Restrict = Callable[[], "Constraint | None"]
"""Makes a constraint for each text of a request; None where any text will do."""


def by_format(model: Model, form: Mapping[str, Any] | None, how: Thinks | None = None) -> Restrict:
    """What holds answers to a `response_format`, after a thought if the model thinks.

    Raises:
        ApiError: the form cannot be compiled, or llguidance is missing.
    """
    if form is None or form["type"] == "text":
        return lambda: None
    field = "response_format"
    if how is None:
        return _compiled(model, lambda: _grammar(form), field)
    return _compiled(model, lambda: _after_thought(model, form, how), field)


def by_tools(
    model: Model,
    tools: Sequence[Mapping],
    form: Mapping[str, Any] | None,
    how: Thinks | None,
    *,
    needed: bool,
    several: bool,
) -> Restrict:
    """What holds an answer to calls of tools, or if none is needed to a `response_format`.

    Raises:
        ApiError: a schema cannot be compiled, or llguidance is missing.
    """

    def grammar() -> str:
        from llguidance import LLMatcher

        for tool in tools:
            name, schema = calling.parameters(tool, needed)
            if not calling.NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} cannot be written: use letters, digits, _-./:")
            alone = LLMatcher.grammar_from_json_schema(json.dumps(schema))
            if complaint := LLMatcher.validate_grammar(alone, model.grammar_tokens):
                raise ValueError(f"parameters of {name!r}: {complaint}")
        rules, written = calling.Rules(model), model.calls.written(model.templates)
        if needed:
            answer = calling.calls(rules, written, tools, needed=True, several=several)
        elif form:
            said = calling.final(rules, how) + _rule(rules, form)
            answer = f"{said} | {calling.calls_beside(rules, written, tools, several=several)}"
        else:
            answer = calling.perhaps_calls(rules, model.calls, written, tools, how, several=several)
        return rules.grammar(f"{calling.thought(rules, how)}({answer})")

    return _compiled(model, grammar, "tools")


def _compiled(model: Model, write: Callable[[], str], field: str) -> Restrict:
    try:
        import llguidance

        grammar = write()
    except ImportError as e:
        raise ApiError(
            f"{field} needs llguidance: pip install 'zoo-jax[serve]'", 501, param=field
        ) from e
    except ValueError as e:
        raise ApiError(f"{field}: {e}", param=field) from e
    if len(grammar) > MOST_CHARACTERS:
        raise ApiError(
            f"{field} has {len(grammar)} characters as a grammar, and may have {MOST_CHARACTERS}",
            param=field,
        )
    if complaint := llguidance.LLMatcher.validate_grammar(grammar, model.grammar_tokens):
        raise ApiError(f"{field}: {complaint[:MOST_SHOWN]}", param=field)
    try:
        return _tried(Grammar(grammar, model.parts)).copy
    except FormFailed as e:
        raise ApiError(f"{field}: {e}", param=field) from e


def _tried(grammar: Grammar) -> Grammar:
    """A grammar that allows a first token and a next: a lexer's most work holds up no engine.

    Raises:
        FormFailed: it fails there.
    """
    allowed = grammar.allowed()
    if allowed.any():
        further = grammar.copy()
        further.accept(int(allowed.argmax()))
        further.allowed()
    return grammar


def _grammar(form: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    if form["type"] == "regex":
        return LLMatcher.grammar_from_regex(form["pattern"])
    schema = json.dumps(_schema(form))
    return LLMatcher.grammar_from_json_schema(schema, {"whitespace_pattern": calling.SPACE})


def _after_thought(model: Model, form: Mapping[str, Any], how: Thinks) -> str:
    rules = calling.Rules(model)
    before = calling.thought(rules, how) + calling.final(rules, how)
    return rules.grammar(before + _rule(rules, form))


def _rule(rules: calling.Rules, form: Mapping[str, Any]) -> str:
    if form["type"] == "regex":
        return rules.pattern(form["pattern"])
    return rules.json(_schema(form))


def _schema(form: Mapping[str, Any]) -> Mapping[str, Any]:
    return form["json_schema"]["schema"] if form["type"] == "json_schema" else {"type": "object"}
