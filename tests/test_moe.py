"""Routers against the papers read in loops, the module against experts run one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.config import MLP, MoE
from zoo.moe import MixtureOfExperts, route

DEEPSEEK = MoE(
    8, 3, 28, score="sigmoid", scale=2.5, select_bias=True, groups=4, top_groups=2,
    fp32_router=True, shared=MLP(20),
)  # fmt: skip


def by_hand(logits, spec, bias):
    """Experts and weights of one token, in loops."""
    if spec.score == "softmax":
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
    else:
        scores = 1 / (1 + np.exp(-logits))
    choice, size = (logits if spec.choose_logits else scores) + bias, spec.experts // spec.groups
    rank = [np.sort(choice[g * size : (g + 1) * size])[-2:].sum() for g in range(spec.groups)]
    allowed = np.argsort(rank)[-spec.top_groups :]
    open_to = [e for e in range(spec.experts) if e // size in allowed]
    chosen = sorted(open_to, key=lambda e: -choice[e])[: spec.top_k]
    weights = scores[chosen] / (scores[chosen].sum() if spec.renormalize else 1)
    return dict(zip(chosen, weights * spec.scale, strict=True))


@pytest.mark.parametrize(
    "spec",
    [
        MoE(8, 3, 28),
        MoE(8, 3, 28, renormalize=False),
        MoE(8, 1, 28, score="sigmoid"),
        MoE(8, 2, 28, groups=2, top_groups=1),
        MoE(8, 2, 28, score="sigmoid", select_bias=True, choose_logits=True),
        DEEPSEEK,
    ],
)
def test_route_is_what_the_papers_say(rng, spec):
    logits = rng.normal(size=(20, 8))
    bias = rng.normal(size=8) if spec.select_bias else np.zeros(8)
    found = route(jnp.asarray(logits, jnp.float32), spec, jnp.asarray(bias, jnp.float32))
    for t in range(20):
        want = by_hand(logits[t], spec, bias)
        got = dict(zip(found.experts[t].tolist(), found.weights[t].tolist(), strict=True))
        assert got == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(found.prob.sum(-1), 1, rtol=1e-5)


def test_selection_bias_moves_the_choice_and_has_no_gradient(rng):
    logits = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)
    spec = MoE(8, 2, 28, score="sigmoid", select_bias=True)
    pushed = route(logits, spec, jnp.zeros(8).at[3].set(10.0))
    assert (pushed.experts == 3).any(-1).all()
    grad = jax.grad(lambda b: route(logits, spec, b).weights.sum())(jnp.zeros(8))
    assert not grad.any()


def test_module_equals_experts_one_by_one(rng):
    x = jnp.asarray(rng.normal(size=(2, 7, 48)), jnp.float32)
    module = MixtureOfExperts(DEEPSEEK, 48)
    params = module.init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: p.unbox(), params, is_leaf=lambda p: hasattr(p, "unbox"))
    params["params"]["bias"]["b"] = jnp.asarray(rng.normal(size=8), jnp.float32)
    y, found = module.apply(params, x)
    p, rows = jax.tree.map(np.asarray, params["params"]), np.asarray(x).reshape(-1, 48)
    routing = route(rows @ p["router"]["w"], DEEPSEEK, p["bias"]["b"])

    def mlp(x, gate, up, down):
        return (np.asarray(jax.nn.silu(x @ gate)) * (x @ up)) @ down

    want = mlp(rows, *(p["shared"][n]["w"] for n in ("gate", "up", "down")))
    for t, row in enumerate(rows):
        for e, w in zip(routing.experts[t], routing.weights[t], strict=True):
            want[t] += float(w) * mlp(row, *(p[n]["w"][e] for n in ("gate", "up", "down")))
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 48), want, atol=2e-6, rtol=1e-4)
    np.testing.assert_array_equal(found.load, np.bincount(np.ravel(routing.experts), minlength=8))


def test_padding_reaches_no_routed_expert(rng):
    x = jnp.asarray(rng.normal(size=(1, 6, 48)), jnp.float32)
    module = MixtureOfExperts(MoE(8, 2, 28), 48)
    params = module.init(jax.random.key(0), x)
    real = jnp.array([[True, True, False, True, False, False]])
    y, found = module.apply(params, x, real)
    full, _ = module.apply(params, x)
    np.testing.assert_allclose(y[real], full[real], atol=1e-6)
    assert not y[~real].any()
    assert (found.tokens, found.load.sum()) == (3, 6)
