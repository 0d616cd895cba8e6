"""Names that stand for several models, and which of them answers a request.

A route is tried in an order: the model that its first fitting rule names, else one by weights; then
the others that it has, for when that one is busy or fails.

Choices by weight are made by hashing the conversation with each model's name (weighted rendezvous
hashing), so a conversation stays with its model as long as the weights do: nothing is remembered,
and a restart or a second server changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SCRIPTS = {
    "ar": ("ARABIC",), "el": ("GREEK",), "he": ("HEBREW",), "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA"), "ko": ("HANGUL",), "latin": ("LATIN",), "ru": ("CYRILLIC",),
    "th": ("THAI",), "zh": ("CJK",),
}  # fmt: skip
"""Languages that are told by their script, as Unicode's names of letters begin; "latin" is all that
share it."""

READ = 2000
"""Characters of a text that its language is told by."""


@dataclass(frozen=True)
class Rule:
    """Sends what fits all that it says to a model.

    Attributes:
        to: the model.
        language: one of `SCRIPTS`.
        longer: characters that a request's text has more than.
        shorter: characters that it has fewer than.
    """

    to: str
    language: str | None = None
    longer: int | None = None
    shorter: int | None = None

    def __post_init__(self):
        if self.language is not None and self.language not in SCRIPTS:
            raise ValueError(
                f"language={self.language!r} of a rule must be one of {', '.join(SCRIPTS)}"
            )
        for name in ("longer", "shorter"):
            bound = getattr(self, name)
            if bound is not None and not (type(bound) is int and bound >= 0):
                raise ValueError(f"{name}={bound!r} of a rule must be a number of characters")
        if (self.language, self.longer, self.shorter) == (None, None, None):
            raise ValueError(f"the rule to {self.to!r} has no condition: use weights for the rest")

    def fits(self, question: str, length: int) -> bool:
        """Whether a text of `length` characters that begins with `question` is meant."""
        return (
            (self.language is None or self.language == language(question))
            and (self.longer is None or length > self.longer)
            and (self.shorter is None or length < self.shorter)
        )


@dataclass(frozen=True)
class Route:
    """A name that stands for several models.

    Attributes:
        weights: how much of the conversations each model gets.
        rules: come before the weights, the first that fits.
        fallback: models to try besides, in this order, after all with weights.
    """

    weights: Mapping[str, float]
    rules: tuple[Rule, ...] = ()
    fallback: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.weights:
            raise ValueError("a route has no weights: name the model that takes what no rule fits")
        for name, weight in self.weights.items():
            if not (type(weight) in (int, float) and 0 < weight < math.inf):
                raise ValueError(f"weights[{name!r}]={weight!r} must be a positive number")

    @property
    def names(self) -> tuple[str, ...]:
        """Every model it may take."""
        ruled = (rule.to for rule in self.rules)
        return tuple(dict.fromkeys((*ruled, *self.weights, *self.fallback)))

    def order(self, question: str, length: int, conversation: str) -> list[str]:
        """The models to try, first to last.

        Args:
            question: what the conversation began with; it tells the language.
            length: characters of all of it.
            conversation: the same for all requests that should have the same model.
        """
        ruled = [rule.to for rule in self.rules if rule.fits(question, length)][:1]
        drawn = sorted(self.weights, key=lambda name: self._draw(name, conversation), reverse=True)
        return list(dict.fromkeys((*ruled, *drawn, *self.fallback)))

    def _draw(self, name: str, conversation: str) -> float:
        """Largest for `name` with a probability that is its weight's share.

        -ln(uniform) / weight is exponentially distributed with the weight as its rate, and the
        least of such numbers is each one's with its share of the rates.
        """
        digest = hashlib.sha256(json.dumps([name, conversation]).encode()).digest()
        uniform = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
        return -self.weights[name] / math.log(uniform)


def language(text: str) -> str | None:
    """What most letters of a text's beginning say; Japanese where there is any kana in it."""
    names = (unicodedata.name(c, "").split(" ")[0] for c in text[:READ] if c.isalpha())
    counts = Counter(name.split("-")[0] for name in names)
    if any(counts[name] for name in SCRIPTS["ja"]) and counts["LATIN"] < counts.total() / 2:
        return "ja"
    tally = {code: sum(counts[name] for name in names) for code, names in SCRIPTS.items()}
    best = max(tally, key=lambda code: tally[code])
    return best if tally[best] else None


def read_routes(file: str | Path, models: Collection[str]) -> dict[str, Route]:
    """Routes by name, from a JSON file.

        {"auto": {"rules": [{"language": "zh", "to": "qwen"}, {"longer": 8000, "to": "long"}],
                  "weights": {"llama": 9, "qwen": 1}, "fallback": ["small"]}}

    Raises:
        ValueError: it is not that, or names a model that is not served.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{file} is not JSON: {e}") from e
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, not an object of routes")
    routes = {}
    for name, said in found.items():
        try:
            routes[name] = _route(said)
            _check_names(name, routes[name], models)
        except (TypeError, ValueError) as e:
            raise ValueError(f"{file}, route {name!r}: {e}") from e
    return routes


def _route(said: Any) -> Route:
    _check_keys(said, Route)
    for name, kind in (("weights", dict), ("rules", list), ("fallback", list)):
        if not isinstance(value := said.get(name, kind()), kind):
            shape = "an object" if kind is dict else "a list"
            raise ValueError(f"{name}={value!r} must be {shape}")
    for rule in said.get("rules", ()):
        _check_keys(rule, Rule)
    rules = tuple(Rule(**rule) for rule in said.get("rules", ()))
    return Route(dict(said.get("weights", {})), rules, tuple(said.get("fallback", ())))


def _check_keys(said: Any, kind: type) -> None:
    known = [field.name for field in fields(kind)]
    if not isinstance(said, dict):
        raise ValueError(f"{said!r} must be an object with {', '.join(known)}")
    if unknown := sorted(said.keys() - set(known)):
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(known)}")


def _check_names(name: str, route: Route, models: Collection[str]) -> None:
    if name in models:
        raise ValueError("a model has this name: call the route something else")
    if missing := [model for model in route.names if model not in models]:
        raise ValueError(f"{missing[0]!r} is not served; there are {', '.join(sorted(models))}")
