"""What a token costs in memory, in bytes that follow from the mathematics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.examples import CONFIGS
from zoo import buffer, cache
from zoo.config import MLA, MLP, Attention, Config, GatedDelta, Layer, MoE, Rope, Stack
from zoo.decoder import Decoder
from zoo.describe import shapes


def test_latent_attention_caches_576_values_per_layer_of_deepseek_v3():
    """DeepSeek-V3: 61 layers x (512 latent + 64 rotated key) x 2 bytes."""
    mixer = MLA(128, 1536, 512, 128, 64, 128, Rope(64))
    dense, moe = Layer(mixer, MLP(18432)), Layer(mixer, MoE(256, 8, 2048))
    cfg = Config(129280, 7168, (Stack(3, (dense,)), Stack(58, (moe,))))
    assert cache.bytes_per_token(cfg, jnp.bfloat16) == 70_272
    assert cache.bytes_per_token(cfg, jnp.float8_e4m3fn) == 35_136
    assert cache.bytes_per_token(cfg, jnp.int8) == 61 * (576 + 9 * 2)  # a scale for 64 values


def test_grouped_query_attention_caches_kv_heads_only():
    """Llama 3.1 8B: 32 layers x (keys + values) x 8 heads x 128 x 2 bytes."""
    layer = Layer(Attention(32, 8, 128, Rope(128)), MLP(14336))
    cfg = Config(128256, 4096, (Stack(32, (layer,)),))
    assert cache.bytes_per_token(cfg, jnp.bfloat16) == 32 * 2 * 8 * 128 * 2
    assert cache.bytes_per_token(cfg, jnp.int8) == 32 * 2 * 8 * (128 + 2)


def test_recurrences_keep_a_state_of_one_size():
    """Qwen3-Next: 36 of 48 layers hold 32 states of 128 x 128 in float32, and 3 inputs of the
    convolution's 2 * 16 * 128 + 32 * 128 channels in bfloat16; 12 attend with 2 heads of 256."""
    delta = Layer(GatedDelta(16, 32, 128, 128), MLP(512))
    full = Layer(Attention(16, 2, 256, Rope(64)), MLP(512))
    cfg = Config(151936, 2048, (Stack(12, (delta, delta, delta, full)),))
    assert cache.state_bytes(cfg, jnp.bfloat16) == 36 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)
    assert cache.state_bytes(cfg, jnp.int8) == cache.state_bytes(cfg, jnp.bfloat16)
    assert cache.bytes_per_token(cfg, jnp.bfloat16) == 12 * 2 * 2 * 256 * 2


def test_layers_that_share_keys_and_values_cost_nothing():
    """A pair of two layers of 2 x 8 heads x 64: one of them caches."""
    own = Attention(16, 8, 64, Rope(64))
    layers = Layer(own, MLP(96)), Layer(dataclasses.replace(own, share_kv=1, window=8), MLP(96))
    cfg = Config(97, 48, (Stack(5, layers),))
    assert cache.bytes_per_token(cfg, jnp.bfloat16) == 5 * 2 * 8 * 64 * 2
    assert list(cache.init(cfg, 1, 4).stacks["stack_0"]) == ["layer_0"]


@pytest.mark.parametrize("heads", [(), (4,)])
def test_write_puts_rows_at_their_own_offsets(rng, heads):
    buffer = jnp.zeros((2, *heads, 6, 3))
    new = jnp.asarray(rng.normal(size=(2, *heads, 2, 3)), jnp.float32)
    got = cache.write(buffer, new, jnp.array([1, 4]))
    want = buffer.at[0, ..., 1:3, :].set(new[0]).at[1, ..., 4:6, :].set(new[1])
    assert (got == want).all()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("heads", [(), (4,)])
def test_tokens_that_wait_are_read_and_written_as_if_they_had_not(rng, heads, dtype):
    def random(*sizes):
        return jnp.asarray(rng.normal(size=sizes), jnp.float32)

    shape, offset = (3, 2, *heads, 6, 8), jnp.array([1, 4])
    whole = buffer.stored(random(*shape), buffer.zeros(shape, jnp.dtype(dtype)))
    new = random(3, 2, *heads, 2, 8)

    @jax.jit
    def layer(whole, new, at):
        """Layer `at`, read while its tokens wait and after they are written; and what waits."""
        waiting = cache.write(buffer.Pending(whole, at), new, offset)
        written = cache.write(jax.tree.map(lambda leaf: leaf[at], whole), new, offset)
        assert waiting.shape == written.shape
        return waiting.new, written, *(buffer.loaded(b, jnp.float32) for b in (waiting, written))

    waits, want, read, wanted = jax.vmap(layer, (None, 0, 0))(whole, new, jnp.arange(3))
    np.testing.assert_array_equal(read, wanted)
    got = jax.jit(cache.write_layers)(whole, waits, offset)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_grow_keeps_tokens_and_adds_room():
    state = cache.init(CONFIGS["mla_moe"], 2, 5, jnp.float32)
    grown = cache.grow(state, 3)
    assert grown.stacks["stack_1"]["layer_0"].c.shape == (2, 2, 8, 32)
    state = cache.init(CONFIGS["dense"], 2, 5, jnp.float32)
    assert cache.grow(state, 3).stacks["stack_0"]["layer_0"].k.shape == (3, 2, 2, 8, 16)
    state = cache.init(CONFIGS["delta"], 2, 5, jnp.float32)
    grown = cache.grow(state, 3).stacks["stack_0"]
    assert grown["layer_0"].conv.shape == (2, 2, 3, 92)
    assert grown["layer_0"].state.shape == (2, 2, 2, 3, 8, 10)
    assert grown["layer_2"].k.shape == (2, 2, 2, 8, 16)


def test_a_step_holds_its_cache_once():
    """Scanned layers write into the cache that came in; beside it, a copy of one layer's part."""
    layer = Layer(Attention(4, 2, 16, Rope(16)), MLP(32))
    model = Decoder(Config(64, 32, (Stack(6, (layer,)),)))
    held = jax.eval_shape(lambda: cache.init(model.cfg, 4, 4096, jnp.float32))

    def step(params, cache, tokens):
        out = model.apply(params, tokens, cache=cache)
        return out.logits, out.cache

    tokens = jax.ShapeDtypeStruct((4, 1), jnp.int32)
    lowered = jax.jit(step, donate_argnums=1).lower(shapes(model.cfg), held, tokens)
    used = lowered.compile().memory_analysis()
    size = cache.bytes_per_token(model.cfg, jnp.float32) * 4 * 4096
    assert used.alias_size_in_bytes >= size
    assert used.temp_size_in_bytes < 0.5 * size
