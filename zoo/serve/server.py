"""What all endpoints share: the models, the routes, the limits and the counts."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from zoo.serve.errors import ApiError
from zoo.serve.metrics import Metrics
from zoo.serve.model import Model
from zoo.serve.routing import Route
from zoo.serve.settings import Settings

GAUGES = {
    "active": "Texts being made.",
    "waiting": "Requests that wait for a slot.",
    "slots": "Texts that can be made at a time.",
    "held_bytes": "Bytes of the cache that texts and the prefix cache hold.",
    "prefix_bytes": "Bytes that the prefix cache holds.",
}
COUNTERS = {
    "generated_tokens": "Tokens made since the engine began.",
    "prompt_tokens": "Tokens of prompts since the engine began.",
    "cached_tokens": "Those of them that the prefix cache had.",
    "guessed_tokens": "Tokens that were guessed ahead.",
    "accepted_tokens": "Those of them that the model said too.",
}


@dataclass
class Server:
    """State of a running server.

    Attributes:
        models: by name, the first being the page's choice.
        routes: by name; no name is a model's.
        settings: limits.
        metrics: counts.
        embedding: requests to embed that are worked on or wait.
        ends: when what is not answered yet is given up, in the event loop's time.
    """

    models: Mapping[str, Model]
    routes: Mapping[str, Route]
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    embedding: int = 0
    ends: float = math.inf

    def __post_init__(self):
        describe = self.metrics.describe
        describe("zoo_requests_total", "counter", "Requests by path and status.")
        describe("zoo_answers_total", "counter", "Texts begun, by model and why they ended.")
        describe("zoo_first_token_seconds", "histogram", "From a request to its first token.")
        describe("zoo_answer_seconds", "histogram", "From a request to its last token.")
        describe("zoo_engine_failures_total", "counter", "Steps of the engine that failed.")
        for name, text in GAUGES.items():
            describe(f"zoo_{name}", "gauge", text)
        for name, text in COUNTERS.items():
            describe(f"zoo_{name}_total", "counter", text)

    def order(self, name: str, question: str, length: int, conversation: str | None) -> list[Model]:
        """The models that may answer, in the order to try them; see `Route.order`.

        Raises:
            ApiError: there is no model or route of that name.
        """
        if name in self.models:
            return [self.models[name]]
        if name not in self.routes:
            known = ", ".join((*self.models, *self.routes))
            raise ApiError(
                f"there is no model {name[:80]!r}; there are {known}", 404,
                param="model", code="model_not_found",
            )  # fmt: skip
        key = secrets.token_hex(8) if conversation is None else conversation
        return [self.models[n] for n in self.routes[name].order(question, length, key)]

    @property
    def failures(self) -> dict[str, str]:
        """Models that cannot answer any more, and why."""
        return {n: str(m.runner.failure) for n, m in self.models.items() if m.runner.failure}

    def measure(self) -> str:
        """All metrics as text."""
        for name, model in self.models.items():
            self.metrics.set("zoo_engine_failures_total", model.runner.failures, model=name)
            stats = model.runner.engine.stats
            for gauge in GAUGES:
                self.metrics.set(f"zoo_{gauge}", getattr(stats, gauge), model=name)
            for counter in COUNTERS:
                self.metrics.set(f"zoo_{counter}_total", getattr(stats, counter), model=name)
        return self.metrics.text()

    def close(self) -> None:
        for model in self.models.values():
            model.runner.close()
