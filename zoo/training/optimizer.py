"""AdamW (arXiv:1711.05101) with clipping, a decay mask and a schedule, as one optax transformation.

Steps count from 1 here: the schedule's value for step t is that of the t-th update.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from zoo.training.settings import Optimizer


def make_optimizer(spec: Optimizer, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; selection biases are left to `step.balance`.

    Args:
        spec: rates, moments, decay and schedule.
        steps: length of the run, in updates.
    """
    clip = optax.identity() if spec.clip is None else optax.clip_by_global_norm(spec.clip)
    adamw = optax.adamw(
        lambda count: learning_rate(spec, steps, count + 1),
        b1=spec.beta1,
        b2=spec.beta2,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        mask=lambda params: decay_mask(params, embeddings=spec.decay_embeddings),
    )
    return optax.partition(
        {"learnt": optax.chain(clip, adamw), "by rule": optax.set_to_zero()}, _kinds
    )


def learning_rate(spec: Optimizer, steps: int, t: jax.Array | int) -> jax.Array:
    """f32[]: the rate of update t = 1 .. steps.

    It rises linearly to `spec.learning_rate` at t = warmup. "cosine" then falls to `final` times
    that at t = steps (arXiv:1608.03983); "wsd" holds and falls linearly over the last `decay`
    updates (arXiv:2404.06395); "constant" holds.
    """
    t = jnp.asarray(t, jnp.float32)
    if spec.schedule == "cosine":
        done = jnp.clip((t - spec.warmup) / max(steps - spec.warmup, 1), 0.0, 1.0)
        shape = spec.final + (1 - spec.final) * 0.5 * (1 + jnp.cos(math.pi * done))
    elif spec.schedule == "wsd":
        done = jnp.clip((t - (steps - spec.decay)) / max(spec.decay, 1), 0.0, 1.0)
        shape = 1 - (1 - spec.final) * done
    else:
        shape = 1.0
    return spec.learning_rate * jnp.minimum(t / max(spec.warmup, 1), 1.0) * shape


def decay_mask(params: dict, embeddings: bool = False) -> dict:
    """True where weight decay acts: matrices (`w`), and with `embeddings` their tables too.

    Both matrices of an adapter decay (`w/a` and `w/b`), towards the weights that they stand on.

    Norms (`scale`) and biases (`b`) never decay. Names decide, not ranks: stacks lead with L.
    """
    decayed = {"w", "table"} if embeddings else {"w"}
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(decayed & _names(path)), params)


def is_selection_bias(path: tuple) -> bool:
    """Whether a parameter path ends in moe/bias/b, which is moved by rule and not by gradient."""
    return [str(getattr(k, "key", k)) for k in path[-3:]] == ["moe", "bias", "b"]


def _kinds(params: dict) -> dict:
    def kind(path, _):
        return "by rule" if is_selection_bias(path) else "learnt"

    return jax.tree_util.tree_map_with_path(kind, params)


def _names(path: tuple) -> set[str]:
    """Of the leaf, and of what holds it."""
    return {str(getattr(k, "key", k)) for k in path[-2:]}
