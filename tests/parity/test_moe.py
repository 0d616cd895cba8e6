"""Mixtures of experts beside transformers: one tensor for all experts, and the balance loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.hf.load import flatten, load
from zoo.hf.save import save_hf
from zoo.moe import MoEStats
from zoo.training.losses import load_balance

reference = pytest.importorskip(
    "tests.parity.reference", reason="live parity needs torch and transformers"
)
FUSED = (
    "dots1", "ernie4_5_moe", "exaone_moe", "flint", "glm4_moe", "granitemoe", "hy_v3", "kolibri1",
    "laguna", "mellum", "mimo_v2_flash", "minimax_m2", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe",
    "solar_open",
)  # fmt: skip
# Those with a softmax: the reference takes one of MiniMax-M2 too, whose router has sigmoids.
BALANCED = ("ernie4_5_moe", "granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")


@pytest.mark.parametrize("name", FUSED)
def test_experts_in_one_tensor(name, tmp_path):
    """What transformers writes from memory holds the same parameters and goes back unchanged."""
    model = reference.build(name)
    usual = load(reference.save(model, tmp_path / "usual"))
    fused = load(reference.save(model, tmp_path / "fused", save_original_format=False))
    held = [tensor for file in fused.source.files for tensor in file.specs]
    assert any(tensor.endswith("experts.gate_up_proj") for tensor in held)
    assert fused.config == usual.config
    wanted = flatten(usual.params)
    for path, found in flatten(fused.params).items():
        np.testing.assert_array_equal(found, wanted[path], err_msg=path)
    save_hf(tmp_path / "again", fused.config, fused.params, source=fused.source)
    for file in (tmp_path / "fused").glob("*.safetensors"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", BALANCED)
def test_balance_loss(name, tmp_path):
    """`load_balance` of a batch, plain and padded, is the reference's auxiliary loss."""
    import torch

    model = reference.build(name)
    for path, bias in (*model.named_parameters(), *model.named_buffers()):
        if path.endswith("e_score_correction_bias"):
            bias.data.zero_()  # the reference's loss leaves it out
    ckpt = load(reference.save(model, tmp_path / "model"))
    apply = jax.jit(zoo.Decoder(ckpt.config).apply)
    ids = reference.tokens(model, 2, 24)
    plain = np.ones(ids.shape, np.int32)
    padded = np.arange(24)[None] < np.asarray([[24], [15]])
    for mask in (plain, padded.astype(np.int32)):
        with torch.no_grad():
            wanted = model(
                torch.tensor(ids), attention_mask=torch.tensor(mask), output_router_logits=True
            ).aux_loss
        aux = apply(ckpt.params, jnp.asarray(ids), segment_ids=jnp.asarray(mask)).aux
        stats = jax.tree.leaves(aux, is_leaf=lambda leaf: isinstance(leaf, MoEStats))
        assert float(load_balance(stats)) == pytest.approx(float(wanted), rel=1e-5)
