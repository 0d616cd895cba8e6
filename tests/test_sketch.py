"""The sketch of Yi-Lightning's architecture: it learns, decodes from half a cache, and is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from tests.examples import random_params
from zoo import cache, checkpoint, cli, models
from zoo.config import MLP, MoE, Stack
from zoo.models.yi_lightning import sketch

MOE = MoE(8, 3, 12, shared=MLP(12))
TINY = sketch(1, 16, 4, 2, 6, 5, MOE, vocab_size=61, max_length=64, block=2)


@pytest.fixture(scope="module")
def made():
    model = zoo.Decoder(TINY)
    return model, random_params(model)


def test_every_second_block_uses_the_first_ones_keys_and_values():
    cfg = zoo.config("yi-lightning-sketch")
    assert [s.repeats for s in cfg.stacks] == [4]
    assert [la.shares for la in cfg.layers[:8]] == [0] * 4 + [4] * 4
    assert [la.mixer.window for la in cfg.layers[:4]] == [4096] * 3 + [None]
    own = dataclasses.replace(cfg, stacks=tuple(map(unshared, cfg.stacks)))
    assert 2 * cache.bytes_per_token(cfg) == cache.bytes_per_token(own)


def unshared(stack: Stack) -> Stack:
    """The stack with keys and values in every layer."""
    layers = tuple(
        dataclasses.replace(la, mixer=dataclasses.replace(la.mixer, share_kv=None))
        for la in stack.layers
    )
    return dataclasses.replace(stack, layers=layers)


def test_it_learns(made):
    model, params = made
    tokens = jax.random.randint(jax.random.key(3), (4, 24), 0, 61)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = model.apply(params, tokens).logits[:, :-1]
            chosen = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(chosen, tokens[:, 1:, None], -1).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value, gradients

    state, losses = optimizer.init(params), []
    for _ in range(30):
        params, state, value, gradients = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_greedy_text_is_that_of_whole_sequences(made):
    """Cached and unstacked, as `generate` decodes, against a call per token without a cache."""
    model, params = made
    prompt, apply = [5, 9, 2], jax.jit(model.apply)
    (found,) = zoo.generate(model, params, [prompt], max_new_tokens=13, temperature=0.0)
    row = np.zeros((1, 16), np.int32)
    row[0, :3] = prompt
    for t in range(3, 16):
        row[0, t] = apply(params, row).logits[0, t - 1].argmax()
    assert list(map(int, found)) == row[0, 3:].tolist()


def test_orbax_and_our_own_files_keep_it(made, tmp_path):
    model, params = made
    checkpoint.save_run(tmp_path / "run", model.cfg, params)
    zoo.save_hf(tmp_path / "hf", model.cfg, params)
    config, restored, _ = checkpoint.load_run(tmp_path / "run")
    read = zoo.load(tmp_path / "hf")
    assert config == read.config == model.cfg
    for found in (restored, read.params):
        jax.tree.map(np.testing.assert_array_equal, found, params)
    keys = [name for name in read.source.specs if "k_proj" in name]
    assert keys == [f"model.layers.{i}.self_attn.k_proj.weight" for i in (0, 1)]


def test_lists_say_what_it_is(capsys):
    assert cli.main(["list", "yi-"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "sizes invented" in lines["yi-lightning-sketch"]
    assert "sizes invented" not in lines["yi-34b"]
    assert "yi-lightning-sketch" in models.sketches()


def test_sources_of_keys_and_values_are_checked():
    hf = models.config_to_hf(TINY)
    assert models.config_from_hf(hf | {"kv_layers": None}).layers[3].shares == 0
    for sources, message in (
        ([0], "each of 4 layers"),
        ([0, 1, 2, 9], "must be a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            models.config_from_hf(hf | {"kv_layers": sources})
