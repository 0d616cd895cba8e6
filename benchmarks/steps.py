"""One training step in zoo and in transformers, on the same batch, for `train_step` and `moe_step`.

Both clip gradients to norm 1 and apply AdamW to every parameter in float32. transformers runs as it
comes, eagerly, with torch's scaled-dot-product attention and the default AdamW of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import zoo
from zoo.training.optimizer import make_optimizer
from zoo.training.settings import Balance, Optimizer
from zoo.training.step import create_state, make_step

RATE, DECAY = 1e-3, 0.1


def ours(model: zoo.Decoder, params: dict, tokens: np.ndarray) -> Callable[[], float]:
    """A function that takes one step and returns its loss; parameters are copied."""
    spec = Optimizer(RATE, schedule="constant", warmup=0, weight_decay=DECAY, beta2=0.999)
    optimizer = make_optimizer(spec, 1000)
    step = make_step(model, optimizer, Balance(bias_rate=0.0))
    copied = jax.tree.map(lambda leaf: leaf.copy(), params)
    held = [create_state(model, optimizer, 0, copied)]
    batch = packed(tokens)

    def run() -> float:
        held[0], metrics = step(held[0], batch)
        jax.block_until_ready(held[0])
        return float(metrics["loss"])

    return run


def theirs(model: Any, tokens: np.ndarray, device: str = "cpu") -> Callable[[], float]:
    """The same with a transformers model, which changes in place and is on torch's `device`."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    ids = torch.tensor(tokens, device=device)

    def run() -> float:
        optimizer.zero_grad()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return run


def packed(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The batch of windows that zoo trains on, each window one document."""
    batch, length = tokens.shape
    targets = np.concatenate((tokens[:, 1:], np.full((batch, 1), -1)), axis=1)
    arrays = {
        "tokens": tokens,
        "targets": targets,
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(length), tokens.shape),
    }
    return {name: np.asarray(array, np.int32) for name, array in arrays.items()}
