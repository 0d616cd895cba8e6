"""Rounding while a folder is read: what rounding its parameters gives, in less memory."""

import jax
import numpy as np
import pytest

import zoo
from tests.examples import random_params
from zoo.quantized import Quantized
from zoo.rounding import method, quantize

HF = dict(
    model_type="qwen3_moe", vocab_size=64, hidden_size=32, intermediate_size=48,
    moe_intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1,
    max_position_embeddings=64, tie_word_embeddings=False, mlp_only_layers=[0],
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made") / "hf"
    cfg = zoo.config_from_hf(HF)
    zoo.save_hf(made, cfg, random_params(zoo.Decoder(cfg)))
    return made


@pytest.mark.parametrize("name", ["int8", "int4", "fp8"])
def test_loading_rounds_as_rounding_what_was_loaded(folder, name):
    how = method(name, 8) if name == "int4" else name
    got, want = zoo.load(folder, quantize=how).params, quantize(zoo.load(folder).params, how)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_on_a_mesh_experts_and_outputs_are_cut(folder):
    mesh = zoo.make_mesh("expert=2,tensor=2", devices=jax.devices()[:4])
    placed, single = (zoo.load(folder, m, quantize="int8").params for m in (mesh, None))
    jax.tree.map(np.testing.assert_array_equal, placed, single)
    up = placed["params"]["stack_1"]["layer_0"]["moe"]["up"]["w"]
    assert isinstance(up, Quantized)
    assert up.codes.addressable_shards[0].data.size == up.codes.size / 4
    tokens = np.arange(12).reshape(1, 12)
    model = zoo.Decoder(zoo.config_from_hf(HF))
    got, want = (jax.jit(model.apply)(params, tokens).logits for params in (placed, single))
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_what_was_rounded_is_not_saved_as_if_it_were_the_folder(folder, tmp_path):
    found = zoo.load(folder, quantize="int8")
    with pytest.raises(ValueError, match="load them again"):
        zoo.save_hf(tmp_path / "out", found.config, found.params, source=found.source)
    with pytest.raises(ValueError, match="quantize='int2' is not one of"):
        zoo.load(folder, quantize="int2")
