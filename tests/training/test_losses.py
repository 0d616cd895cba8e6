import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

import zoo
from tests import examples
from tests.training.conftest import pack
from zoo import sharding
from zoo.axes import partition_spec
from zoo.moe import MoEStats
from zoo.plan import hlo
from zoo.training import losses
from zoo.training.losses import Head, cross_entropy, load_balance
from zoo.training.step import token_losses

CAPPED = dict(tie_embeddings=False, head_bias=True, logit_scale=0.5, logit_softcap=4.0)


def test_cross_entropy_is_log_softmax_in_float64():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(5, 8)).astype(np.float32)
    head = rng.normal(size=(8, 11)).astype(np.float32)
    targets = np.array([3, -1, 10, 0, -1])
    logits = hidden.astype(np.float64) @ head.astype(np.float64)
    nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(5), targets]
    np.testing.assert_allclose(
        cross_entropy(hidden, Head(head), targets), np.where(targets < 0, 0, nll), rtol=1e-5
    )


@pytest.mark.parametrize("pieces", [1, 4])
def test_cross_entropy_of_a_mesh_gathers_and_sums_a_head_once(monkeypatch, rng, pieces):
    """Loss and gradients equal one device's, of tokens that fsdp and context cut and logits that
    tensor cuts; what fsdp gathers and scatters is the matrix, once, in however many pieces."""
    monkeypatch.setattr(losses, "LANES", 8)
    monkeypatch.setattr(losses, "MOST_LOGITS", 8 * 16 * 96 // 2 // pieces)  # of eight devices
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    given = draw(8, 16, 32), draw(32, 96), draw(96)
    targets, weights = rng.integers(-1, 96, (8, 16)), draw(8, 16)

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def loss(hidden, w, bias):
        return (cross_entropy(hidden, Head(w, bias, 0.7, 3.0), targets) * weights).sum()

    want = jax.jit(loss)(*given)
    mesh, rules = zoo.make_mesh("fsdp=2,tensor=2,context=2"), sharding.find_rules(None)
    names = ("batch", "length", None), ("embed", "vocab"), ("vocab",)
    lie = tuple(NamedSharding(mesh, partition_spec(n, rules)) for n in names)
    given = jax.device_put(given, lie)
    with sharding.use(mesh):
        program = jax.jit(loss, out_shardings=(None, lie)).lower(*given).compile()
        got = program(*given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
    found = hlo.count(program.as_text(), list(mesh.shape.items())).collectives
    moved = {(one.kind, one.axes): (one.calls, one.bytes) for one in found}
    size, n = 32 * 96 // 2 * 4, 3 if pieces > 1 else 1
    assert moved["reduce-scatter", ("fsdp",)] == (n, size)
    passes = 2 if pieces > 1 else 1  # of one piece, XLA knows that backward gathers it again
    assert moved["all-gather", ("fsdp",)] == (n * passes, size * passes)
    assert moved["all-reduce", ("context",)][0] == 1


def test_ignored_targets_have_no_gradient():
    hidden, head = jax.random.normal(jax.random.key(0), (2, 4, 8))[0], jnp.eye(8)
    targets = jnp.array([1, -1, 2, -1])
    grad = jax.grad(lambda h: cross_entropy(h, Head(head), targets).sum())(hidden)
    assert (np.abs(grad).sum(-1) > 0).tolist() == [True, False, True, False]


def test_cross_entropy_stays_finite_where_exp_overflows():
    hidden = jnp.array([[1000.0, -1000.0]])
    assert cross_entropy(hidden, Head(jnp.eye(2)), jnp.array([1]))[0] == 2000.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("most", "bounds"), [(2**28, (1.0, None)), (60, (0.7, 3.0))])
def test_cross_entropy_gradients_match_autodiff(monkeypatch, dtype, most, bounds):
    """In one part and in many, with and without scale, bias and bound."""
    monkeypatch.setattr(losses, "MOST_LOGITS", most)
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (14, 8), dtype)
    w, bias = jax.random.normal(keys[1], (8, 11)), jax.random.normal(keys[3], (11,))
    weight = jax.random.normal(keys[2], (14,))
    targets = jnp.array([3, -1, 10, 0, -1, 1, 2, 3, 4, 5, 6, -1, 7, 8])
    scale, softcap = bounds

    def plain(hidden, w, bias):
        logits = hidden.astype(jnp.float32) @ w.astype(dtype).astype(jnp.float32) + bias
        logits = logits * scale
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        chosen = jax.nn.log_softmax(logits)[jnp.arange(14), targets]
        return (weight * jnp.where(targets < 0, 0, -chosen)).sum()

    def ours(hidden, w, bias):
        return (weight * cross_entropy(hidden, Head(w, bias, scale, softcap), targets)).sum()

    with examples.bfloat16_products():
        got = jax.value_and_grad(ours, (0, 1, 2))(hidden, w, bias)
    want = jax.value_and_grad(plain, (0, 1, 2))(hidden, w, bias)
    bound = 1e-5 if dtype == jnp.float32 else 2e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=bound, atol=bound), got, want)


def test_losses_are_those_of_the_models_logits():
    """With a bias, a scale and a bound on the logits."""
    cfg = dataclasses.replace(examples.CONFIGS["dense"], **CAPPED)
    model = zoo.Decoder(cfg)
    params, tokens = examples.random_params(model), jnp.arange(12).reshape(2, 6)
    targets = jnp.arange(2, 14).reshape(2, 6)
    batch = dict(tokens=tokens, targets=targets, segment_ids=tokens * 0 + 1, positions=tokens % 6)
    _, found = token_losses(model, params, batch)
    logits = jax.nn.log_softmax(model.apply(params, tokens).logits)
    wanted = -jnp.take_along_axis(logits, targets[..., None], -1).reshape(-1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_devices_that_share_rows_share_logits():
    """Each makes those of its own tokens: of a quarter of a row, in half of the rows."""
    cfg = dataclasses.replace(examples.CONFIGS["dense"], vocab_size=8192)
    model, mesh, (B, T) = zoo.Decoder(cfg), zoo.make_mesh("fsdp=2,context=4"), (4, 128)
    params, rng = examples.random_params(model), np.random.default_rng(0)
    draw = lambda low: jnp.asarray(rng.integers(low, 8192, (B, T)), jnp.int32)  # noqa: E731
    batch = dict(tokens=draw(0), targets=draw(-1), segment_ids=None, positions=None)
    weights = jnp.asarray(rng.normal(size=B * T), jnp.float32)

    def slope(params, batch):
        def total(params):
            found = token_losses(model, params, batch)[1]
            return (found * weights).sum(), found

        return jax.grad(total, has_aux=True)(params)

    wanted = jax.jit(slope)(params, batch)
    with sharding.use(mesh):
        placed = jax.device_put(batch, sharding.batch_sharding(mesh, None, B))
        compiled = jax.jit(slope).lower(params, placed).compile()
        found = compiled(params, placed)
    share = 4 * B * T * 8192 / 8
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * share
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(near, found, wanted)


def test_packed_losses_equal_those_of_separate_documents(sparse, params, documents, batch):
    run = jax.jit(lambda batch: token_losses(sparse, params, batch)[1])
    packed = np.asarray(run(batch))[batch["targets"].reshape(-1) >= 0]
    alone = run(pack([[doc] for doc in documents], 32)).reshape(len(documents), 32)
    ends = [len(doc) - 1 for doc in documents]
    a, b, c, d, e, f, g, h = (row[:end] for row, end in zip(alone, ends, strict=True))
    np.testing.assert_allclose(packed, np.concatenate([a, b, c, d, e, f, h, g]), atol=2e-5)


def test_load_balance_follows_transformers():
    """By hand, from logits, as `load_balancing_loss_func` pools layers and tokens."""
    rng = np.random.default_rng(1)
    layers, tokens, experts, top_k = 3, 10, 4, 2
    logits = rng.normal(size=(layers, tokens, experts))
    prob = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.argsort(-prob, axis=-1)[..., :top_k]
    mask = np.eye(experts)[chosen].reshape(layers * tokens, top_k, experts)
    expected = experts * (mask.mean(0) * prob.reshape(-1, experts).mean(0)).sum()
    load = mask.sum(1).reshape(layers, tokens, experts).sum(1)
    both = MoEStats(load[:2], prob[:2].sum(1), np.full(2, tokens))
    last = MoEStats(load[2], prob[2].sum(0), np.array(tokens))
    assert load_balance([both, last]) == pytest.approx(expected, rel=1e-6)


def test_even_load_scores_top_k():
    even = MoEStats(jnp.full((2, 8), 3.0), jnp.full((2, 8), 1.5), jnp.full(2, 12.0))
    assert load_balance([even]) == pytest.approx(2.0)


def test_layers_of_other_sizes_weigh_what_they_read():
    """The mean over tokens of each size's own loss: by hand, of one layer of 4 and two of 8."""
    rng = np.random.default_rng(2)
    small, big, more = (
        MoEStats(rng.random(n), rng.random(n), np.array(tokens))
        for n, tokens in ((4, 6.0), (8, 6.0), (8, 6.0))
    )
    wanted = float(load_balance([small]) + 2 * load_balance([big, more])) / 3
    assert load_balance([small, big, more]) == pytest.approx(wanted, rel=1e-6)
    assert load_balance([big, small, more]) == pytest.approx(wanted, rel=1e-6)
    assert load_balance([]) == 0
