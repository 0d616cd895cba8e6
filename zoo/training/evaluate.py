"""Evaluation: loss, perplexity, bits per byte and speed on a split, and where tokens were routed.

Axes: B windows of a batch, T tokens of a window, L repeats of a stack, E experts.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import numpy as np

from zoo import hosts
from zoo.config import Config
from zoo.decoder import Decoder
from zoo.training.losses import IGNORED
from zoo.training.step import Batch, token_losses


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    `loss` is in nats per target, `perplexity` its exponential, `bits_per_byte` the loss over the
    bytes of the text, which does not depend on the tokenizer (None where the bytes are unknown).
    `targets` counts predicted tokens, `tokens_per_second` those read. `expert_load` has a row per
    MoE layer, by its number in the model: each expert's share of assignments times the number of
    experts, so that 1 is balance.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    targets: int
    tokens_per_second: float
    expert_load: dict[int, list[float]]

    def to_json(self) -> dict:
        """As plain JSON values, rounded where digits mean nothing."""
        found = dataclasses.asdict(self)
        found["tokens_per_second"] = round(self.tokens_per_second, 1)
        found["expert_load"] = {
            str(k): [round(x, 4) for x in row] for k, row in self.expert_load.items()
        }
        return found


def make_eval_step(model: Decoder) -> Callable[[dict, Batch], dict]:
    """Compiles (params, batch) -> sums over the batch: "nll", "targets", "tokens", and "aux"."""

    def step(params: dict, batch: Batch) -> dict:
        out, nll = token_losses(model, params, batch)
        return {
            "nll": nll.sum(),
            "targets": (batch["targets"] != IGNORED).sum(),
            "tokens": (batch["segment_ids"] > 0).sum(),
            "aux": out.aux,
        }

    return jax.jit(step)


def evaluate(
    step: Callable[[dict, Batch], dict],
    params: dict,
    batches: Iterable[Batch],
    config: Config,
    bytes_per_target: float | None = None,
) -> Report:
    """Runs `step` of `make_eval_step` over all batches.

    Args:
        step: compiled for the model.
        params: what the model takes.
        batches: dicts of i32[B, T]; all of one shape, padded where they end.
        config: the model, for the numbers of its layers.
        bytes_per_target: bytes of text that a target stands for on average, on this split.

    Raises:
        ValueError: there is nothing to predict.
    """
    sums, start, first = [], time.perf_counter(), 0
    for batch in batches:
        sums.append(step(params, batch))
        if len(sums) == 1:
            jax.block_until_ready(sums)
            compiled = time.perf_counter()
    sums = jax.tree.map(hosts.gathered, sums)
    seconds = time.perf_counter() - start
    targets = sum(int(s["targets"]) for s in sums)
    if not targets:
        raise ValueError("nothing to evaluate: the split holds no token that has a successor")
    tokens = sum(int(s["tokens"]) for s in sums)
    if len(sums) > 1:
        first, seconds = int(sums[0]["tokens"]), start + seconds - compiled
    loss = math.fsum(float(s["nll"]) for s in sums) / targets
    return Report(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=bytes_per_target and loss / math.log(2) / bytes_per_target,
        targets=targets,
        tokens_per_second=(tokens - first) / seconds,
        expert_load=expert_load([s["aux"] for s in sums], config),
    )


def expert_load(found: list[dict], config: Config) -> dict[int, list[float]]:
    """Each expert's share of assignments times E, for every MoE layer by its number in the model.

    Args:
        found: the `aux` of some calls, as numpy arrays; loads f32[L, E].
        config: the model.
    """
    rows: dict[int, list[float]] = {}
    number = 0
    for i, stack in enumerate(config.stacks):
        for repeat in range(stack.repeats):
            for j in range(len(stack.layers)):
                stats = [aux.get(f"stack_{i}", {}).get(f"layer_{j}") for aux in found]
                if stats and stats[0] is not None:
                    load = np.sum([s.load[repeat] for s in stats], axis=0, dtype=np.float64)
                    rows[number] = (load * load.size / max(load.sum(), 1.0)).tolist()
                number += 1
    return rows
