"""Mixture of experts: routers as functions, and the module that owns router and experts.

Axes: T tokens, D embedding, E experts, C chosen experts (top_k), F hidden of an expert.

Dropless: every token reaches all its experts, and the experts that nobody chose cost nothing
(`zoo.grouped`). Routers follow transformers; the selection bias and groups are DeepSeek-V3's
(arXiv:2412.19437 section 2.1.2).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import expert_parallel
from zoo.config import MoE
from zoo.layers import GatedMLP, Linear


class Routing(NamedTuple):
    """`experts` i32[T, C], their `weights` f32[T, C], and `prob` f32[T, E], 1 in all per token.

    Of more axes of tokens where there are more.
    """

    experts: jax.Array
    weights: jax.Array
    prob: jax.Array


class MoEStats(NamedTuple):
    """Where the real tokens of a call went: sums over tokens, so that calls and layers add up.

    `load` f32[E] counts assignments (it sums to tokens * C), `prob` f32[E] sums the router's
    probabilities, `tokens` f32[] counts tokens that are not padding.
    """

    load: jax.Array
    prob: jax.Array
    tokens: jax.Array


def route(logits: jax.Array, spec: MoE, bias: jax.Array | None = None) -> Routing:
    """Chooses experts from router logits[T, E]; scores are float32.

    `bias` f32[E] moves the choice and not the weights (`DeepseekV3TopkRouter`); with groups, the
    groups are ranked by their two best experts and the others cannot be chosen.
    """
    logits = logits.astype(jnp.float32)
    if spec.score == "sparsemixer":
        return _sparsemixer(logits, spec.jitter)
    if spec.score == "softmax":
        scores = prob = jax.nn.softmax(logits, axis=-1)
    else:
        scores = jax.nn.sigmoid(logits)
        prob = scores / (scores.sum(-1, keepdims=True) + 1e-20)
    choice = logits if spec.choose_logits else scores
    if bias is not None:
        choice = choice + jax.lax.stop_gradient(bias.astype(jnp.float32))
    if spec.groups > 1:
        choice = _only_top_groups(choice, spec)
    _, experts = jax.lax.top_k(choice, spec.top_k)
    weights = jnp.take_along_axis(scores, experts, axis=-1)
    if spec.renormalize:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return Routing(experts, weights * spec.scale, prob)


def _only_top_groups(choice: jax.Array, spec: MoE) -> jax.Array:
    grouped_choice = choice.reshape(-1, spec.groups, spec.experts // spec.groups)
    best_of_group = 2 if spec.group_score == "top2" else 1
    group_score = jax.lax.top_k(grouped_choice, best_of_group)[0].sum(-1)
    _, best = jax.lax.top_k(group_score, spec.top_groups)
    kept = jax.nn.one_hot(best, spec.groups, dtype=bool).any(-2)
    return jnp.where(kept[..., None], grouped_choice, -jnp.inf).reshape(choice.shape)


def _sparsemixer(logits: jax.Array, jitter: float) -> Routing:
    """Two experts, one after the other, each weighed against its near competitors only.

    Evaluation of `sparsemixer` in modeling_phimoe.py: an expert competes with the likeliest one if
    its logit is within 2 * jitter of it, relative to the larger magnitude; the second choice
    leaves the first out.
    """

    def pick(candidates: jax.Array) -> tuple[jax.Array, jax.Array]:
        best = jax.lax.stop_gradient(candidates.max(-1, keepdims=True))
        distance = (best - logits) / jnp.maximum(jnp.abs(logits), best)
        near = jnp.where(distance > 2 * jitter, -jnp.inf, candidates)
        expert = jnp.argmax(candidates, axis=-1, keepdims=True)
        weight = jnp.take_along_axis(jax.nn.softmax(near, axis=-1), expert, axis=-1)
        return expert, weight

    first, first_weight = pick(logits)
    taken = first == jnp.arange(logits.shape[-1])
    second, second_weight = pick(jnp.where(taken, -jnp.inf, logits))
    experts = jnp.concatenate((first, second), axis=-1).astype(jnp.int32)
    weights = jnp.concatenate((first_weight, second_weight), axis=-1)
    return Routing(experts, weights, jax.nn.softmax(logits, axis=-1))


def stats(routing: Routing, real: jax.Array | None = None) -> MoEStats:
    """Sums a routing over its tokens [...]; `real` bool[...] leaves padding out."""
    *tokens, experts = routing.prob.shape
    real = jnp.ones(tokens, jnp.float32) if real is None else real.astype(jnp.float32)
    chosen = jax.nn.one_hot(routing.experts, experts, dtype=jnp.float32).sum(-2)
    load, prob = (jnp.tensordot(real, part, len(tokens)) for part in (chosen, routing.prob))
    return MoEStats(load, prob, real.sum())


class MixtureOfExperts(nn.Module):
    """x[..., D] -> [..., D] and `MoEStats`."""

    spec: MoE
    dim: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        spec, types = self.spec, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        router_dtype = jnp.float32 if spec.fp32_router else self.dtype
        self.router = Linear(
            (self.dim,), (spec.experts,), ("embed", "experts"), bias=spec.router_bias,
            dtype=router_dtype, param_dtype=self.param_dtype,
        )  # fmt: skip
        if spec.select_bias:
            self.bias = SelectionBias(spec.experts)
        each = dict(stacked=(spec.experts,), bias=spec.bias, **types)
        inner = ((self.dim,), (spec.hidden,), ("experts", "embed", "mlp"))
        self.gate = Linear(*inner, **each)
        self.up = Linear(*inner, **each)
        self.down = Linear((spec.hidden,), (self.dim,), ("experts", "mlp", "embed"), **each)
        if spec.shared is not None:
            self.shared = GatedMLP(spec.shared, self.dim, **types)
        if spec.shared_gate:
            self.shared_gate = Linear((self.dim,), (1,), ("embed", "norm"), **types)

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> tuple[jax.Array, MoEStats]:
        """`real` bool[...] marks tokens that are not padding; padding reaches no routed expert."""
        spec, bias = self.spec, self.bias() if self.spec.select_bias else None
        choose = lambda logits, bias: route(logits, spec, bias)  # noqa: E731
        routing = expert_parallel.by_token(choose, self.router(x), bias)
        experts = routing.experts
        if real is not None:
            experts = jnp.where(real[..., None], experts, spec.experts)
        weights = routing.weights if spec.fp32_weights else routing.weights.astype(self.dtype)
        parts = self.gate, self.up, self.down
        biases = tuple(part.b.astype(self.dtype) for part in parts) if spec.bias else None
        y = expert_parallel.expert_mlp(
            x.astype(self.dtype), experts, weights,
            *(part.stack(x) for part in parts),
            act=spec.act, biases=biases, weigh_input=spec.weigh_input,
        )  # fmt: skip
        if spec.shared is not None:
            y = y + self._shared(x)
        return y, stats(routing, real)

    def _shared(self, x: jax.Array) -> jax.Array:
        y = self.shared(x)
        return y * jax.nn.sigmoid(self.shared_gate(x)) if self.spec.shared_gate else y


class SelectionBias(nn.Module):
    """The bias of the choice, f32[E]: moved by rule (`zoo.training`), never by gradient."""

    experts: int

    @nn.compact
    def __call__(self) -> jax.Array:
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("experts",))
        return self.param("b", zeros, (self.experts,), jnp.float32)
