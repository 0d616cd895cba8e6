"""Where a run lives: the mesh, the rules and the schedule of stages of its settings."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from zoo import pipeline, sharding
from zoo.config import Config
from zoo.decoder import Decoder
from zoo.training.settings import Settings


@dataclass(frozen=True)
class Layout:
    """A mesh, the table of rules by which everything lies on it, and how batches go through stages.

    `microbatches` and `rounds` are of `zoo.pipeline.run`.
    """

    mesh: jax.sharding.Mesh
    rules: sharding.Rules
    microbatches: int | None = None
    rounds: int = 1

    def use(self) -> AbstractContextManager[None]:
        """Within it programs are traced for this mesh."""
        return sharding.use(self.mesh, self.rules)

    def check(self, config: Config, rows: int, length: int) -> bool:
        """Refuses a model, or a (micro)batch of so many rows and tokens of each, that mesh or
        stages do not divide.

        Returns:
            Whether any stack runs in stages.

        Raises:
            ValueError: it says what would.
        """
        sharding.check_mesh(self.mesh, self.rules)
        sharding.shardings(config, self.mesh, self.rules)
        sharding.batch_sharding(self.mesh, self.rules, rows)
        stacks, how = (stack.repeats for stack in config.stacks), (self.microbatches, self.rounds)
        return pipeline.check_all(stacks, self.mesh.shape, rows, length, *how) is not None

    def model(self, config: Config, **options: Any) -> Decoder:
        """The decoder, with the schedule of this layout."""
        return Decoder(config, microbatches=self.microbatches, rounds=self.rounds, **options)

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The arrays [B, T] of a batch, cut over the devices."""
        rows = len(batch["tokens"]) * jax.process_count()
        lie = sharding.batch_sharding(self.mesh, self.rules, rows)
        return {k: jax.make_array_from_process_local_data(lie, x) for k, x in batch.items()}


def find_layout(settings: Settings) -> Layout:
    """The layout that settings name, before any work.

    Raises:
        ValueError: a mesh or a table that does not exist, or does not fit the devices.
    """
    spec, devices = settings.mesh, None
    if spec is None and jax.process_count() > 1:
        raise ValueError(
            f"mesh=None is one device, but {jax.process_count()} processes work together: set a "
            "mesh over the devices of all, such as mesh='fsdp=-1'"
        )
    if spec is None:
        spec, devices = "data=1", jax.devices()[:1]
    rules = settings.rules
    if isinstance(rules, dict):  # JSON and command lines have no tuples
        rules = {k: tuple(v) if isinstance(v, list) else v for k, v in rules.items()}
    mesh, rules = sharding.make_mesh(spec, devices), sharding.find_rules(rules)
    return Layout(mesh, rules, settings.microbatches, settings.rounds)
