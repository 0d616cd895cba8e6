"""Properties that hold for every config, each against another way to the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

import zoo
from tests.examples import CONFIGS, bfloat16_products, random_params
from zoo import cache
from zoo.inference import unstack
from zoo.layers import HEADS_FIRST


def close(a, b, tolerance=1e-5):
    """Equal within `tolerance` of b's scale."""
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.abs(b).max()))


@functools.cache
def run(model, method=None):
    """`model.apply`, compiled once for all tests of a model."""
    return jax.jit(functools.partial(model.apply, method=method))


ALL = jnp.ones((2, 24), jnp.int32)
RAGGED = (jnp.arange(24) < jnp.array([[24], [15]])).astype(jnp.int32)
"""Segment ids of two whole rows, and of one that is padded on the right.

Tests share the shapes of their calls, for what costs time here is compiling.
"""


def test_cached_in_ragged_pieces_equals_uncached(made):
    model, params, tokens = made
    want = run(model)(params, tokens).logits
    state = cache.init(model.cfg, 2, 32, jnp.float32)
    got = []
    ends = (9, 10, 19, *range(20, 25))
    for start, stop in zip((0, *ends), ends, strict=False):
        out = run(model)(params, tokens[:, start:stop], cache=state)
        state, _ = out.cache, got.append(out.logits)
    close(jnp.concatenate(got, axis=1), want)
    assert state.lengths.tolist() == [24, 24]


def test_a_cache_filled_whole_equals_one_filled_in_part(made):
    model, params, tokens = made
    fill = lambda slots: run(model)(  # noqa: E731
        params, tokens, segment_ids=ALL, cache=cache.init(model.cfg, 2, slots, jnp.float32)
    )
    exact, roomy = fill(24), fill(32)
    close(exact.logits, roomy.logits)
    grown = cache.grow(exact.cache, 8)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, roomy.cache)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), grown, roomy.cache)


def test_right_padding_changes_nothing(made):
    model, params, tokens = made
    noise = jnp.where(RAGGED > 0, tokens, (tokens + 1) % model.cfg.vocab_size)
    got = run(model)(params, noise, segment_ids=RAGGED).logits
    close(got[1, :15], run(model)(params, tokens[:, :15]).logits[1])
    state = cache.init(model.cfg, 2, 24, jnp.float32)
    state = run(model)(params, noise, segment_ids=RAGGED, cache=state).cache
    assert state.lengths.tolist() == [24, 15]
    then = run(model)(params, tokens[:, :1], cache=cache.grow(state, 8)).logits
    alone = noise.at[1, 15].set(tokens[1, 0])  # what follows it does not reach it
    close(then[1, 0], run(model)(params, alone).logits[1, 15])


def test_left_padding_changes_nothing(made):
    model, params, tokens = made
    ids = (jnp.arange(24) >= 9).astype(jnp.int32)[None].repeat(2, 0)
    positions = jnp.maximum(jnp.arange(24) - 9, 0)[None].repeat(2, 0)
    got = run(model)(params, tokens, segment_ids=ids, positions=positions).logits[:, 9:]
    close(got, run(model)(params, tokens[:, 9:]).logits, 1e-5)


def test_packed_equals_separate(made):
    model, params, tokens = made
    ids = jnp.array([[1] * 9 + [2] * 15] * 2)
    positions = jnp.concatenate((jnp.arange(9), jnp.arange(15)))[None].repeat(2, 0)
    packed = run(model)(params, tokens, segment_ids=ids, positions=positions)
    first = run(model)(params, tokens, segment_ids=jnp.where(ids == 1, 1, 0))
    second = run(model)(params, tokens[:, 9:])
    close(packed.logits, jnp.concatenate((first.logits[:, :9], second.logits), axis=1))
    summed = jax.tree.map(jnp.add, first.aux, second.aux)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), packed.aux, summed)


def test_no_position_sees_a_later_token(made):
    model, params, tokens = made
    want = run(model)(params, tokens).logits
    for j in range(24):
        other = tokens.at[:, j].set((tokens[:, j] + 1) % model.cfg.vocab_size)
        moved = np.abs(run(model)(params, other).logits - want).max((0, 2))
        scale = np.abs(want).max()
        assert moved[:j].max(initial=0.0) <= 1e-5 * scale
        assert moved[j] > 1e-3 * scale
        assert j >= 12 or moved[j + 1 :].max() > 1e-5 * scale


def test_unstacked_equals_scanned(made):
    model, params, tokens = made
    flat, views = unstack.prepare(model, params)
    assert flat.unstacked
    want = run(model)(params, tokens)
    for held in (None, unstack.init_cache(flat, 2, 24)):
        out = run(flat)(views, tokens, cache=held)
        close(out.logits, want.logits)
        jax.tree.map(lambda a, b: close(a, b), out.aux, want.aux)


def test_unstacking_on_cpu_copies_nothing(made):
    model, params, _ = made
    _, views = unstack.prepare(model, params)
    first = flatten_dict(params["params"]["stack_0"])
    view = flatten_dict(views["params"]["stack_0_0"])
    big = [(leaf, view[path]) for path, leaf in first.items() if view[path].nbytes % 64 == 0]
    assert big
    assert all(a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer() for a, b in big)
    added = {path[-3:] for path in view.keys() - first.keys()}
    assert added in (set(), {("attn", name, HEADS_FIRST) for name in ("k_up", "v_up")})


def gradient(model, params, tokens):
    return jax.jit(jax.grad(lambda p: model.apply(p, tokens).logits.var()))(params)


def test_rematerialised_gradients_are_the_same(made):
    model, params, tokens = made
    remat = model.clone(remat=jax.checkpoint_policies.nothing_saveable)
    found, want = gradient(remat, params, tokens), gradient(model, params, tokens)
    jax.tree.map(lambda a, b: close(a, b, 1e-4) if np.any(b) else None, found, want)


def test_unrolled_gradients_are_the_same():
    model = zoo.Decoder(CONFIGS["dense"])
    params, tokens = random_params(model), jnp.arange(48).reshape(2, 24)
    found = gradient(model.clone(unroll=2), params, tokens)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), found, gradient(model, params, tokens))


def test_hidden_then_logits_is_the_plain_call(made):
    model, params, tokens = made

    @jax.jit
    def in_two(params, tokens):
        out = model.apply(params, tokens, method="hidden")
        assert out.logits is None
        assert out.hidden.shape == (2, 24, model.cfg.embed_dim)
        return model.apply(params, out.hidden, method="logits")

    np.testing.assert_array_equal(in_two(params, tokens), run(model)(params, tokens).logits)


def test_statistics_count_real_tokens(made):
    model, params, tokens = made
    aux = run(model)(params, tokens, segment_ids=RAGGED).aux
    for i, stack in enumerate(model.cfg.stacks):
        for j, layer in enumerate(stack.layers):
            if isinstance(layer.ffn, zoo.MoE):
                found = aux[f"stack_{i}"][f"layer_{j}"]
                assert found.load.shape == (stack.repeats, layer.ffn.experts)
                np.testing.assert_allclose(found.tokens, 39)
                np.testing.assert_allclose(found.load.sum(-1), 39 * layer.ffn.top_k)
                np.testing.assert_allclose(found.prob.sum(-1), 39, rtol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_gives_float32_logits(made):
    model, params, tokens = made
    half = model.clone(dtype=jnp.bfloat16)
    with bfloat16_products():
        out = jax.block_until_ready(run(half)(params, tokens))
    assert out.logits.dtype == jnp.float32
    hidden = jax.eval_shape(run(half, "hidden"), params, tokens).hidden
    assert hidden.dtype == jnp.bfloat16
    want = run(model)(params, tokens).logits
    assert np.abs(out.logits - want).mean() < 0.1 * np.abs(want).mean()


@functools.cache
def fresh():
    """A model of latent attention and experts, and what `init` makes."""
    model = zoo.Decoder(CONFIGS["mla_moe"])
    return model, model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))


def test_init_is_plain_arrays_in_the_one_layout():
    params = fresh()[1]["params"]
    layer = jax.tree.map(jnp.shape, params["stack_1"]["layer_0"])
    assert all(type(leaf).__name__ == "ArrayImpl" for leaf in jax.tree.leaves(params))
    assert params["embed"]["table"].shape == (97, 48)
    assert params["head"]["w"].shape == (48, 97)
    assert layer == {
        "attn_norm": {"scale": (2, 48)},
        "ffn_norm": {"scale": (2, 48)},
        "attn": {
            "q_down": {"w": (2, 48, 20)},
            "q_norm": {"scale": (2, 20)},
            "q_up": {"w": (2, 20, 4, 20)},
            "kv_down": {"w": (2, 48, 24)},
            "kv_norm": {"scale": (2, 24)},
            "k_rope": {"w": (2, 48, 8)},
            "k_up": {"w": (2, 24, 4, 12)},
            "v_up": {"w": (2, 24, 4, 10)},
            "o": {"w": (2, 4, 10, 48)},
        },
        "moe": {
            "router": {"w": (2, 48, 8)},
            "bias": {"b": (2, 8)},
            "gate": {"w": (2, 8, 48, 28)},
            "up": {"w": (2, 8, 48, 28)},
            "down": {"w": (2, 8, 28, 48)},
            "shared": {
                "gate": {"w": (2, 48, 20)},
                "up": {"w": (2, 48, 20)},
                "down": {"w": (2, 20, 48)},
            },
        },
    }


def test_init_gives_logits_of_order_one():
    """Fan-in initialisation: what a fresh model says is about as loud as its inputs."""
    model, params = fresh()
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, model.cfg.vocab_size)
    assert 0.5 < run(model)(params, tokens).logits.std() < 2
