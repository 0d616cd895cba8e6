"""Quantised checkpoints beside transformers: its arithmetic, and what its models say with ours."""

from __future__ import annotations

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.hf import quantise
from tests.hf.test_load import FOLDER
from tests.hf.test_quantised import CASES
from zoo.hf import stored
from zoo.hf.load import load
from zoo.hf.save import save_hf
from zoo.quantized import FP4, Form, Whole, multipliers

torch = pytest.importorskip("torch", reason="live parity needs torch and transformers")
transformers = pytest.importorskip(
    "transformers", reason="live parity needs torch and transformers"
)
E8M0 = quantise.E8M0


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Also of types that torch cannot read from numpy."""
    kinds = {quantise.FP8: torch.float8_e4m3fn, E8M0: torch.float8_e8m0fnu}
    kind = kinds.get(array.dtype.type)
    return torch.tensor(array) if kind is None else torch.tensor(array.view("u1")).view(kind)


def ours(form: Form, codes: np.ndarray, scales: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The same in numpy, as while loading, and compiled, as in a model."""
    found = np.empty(form.shape, dtype)
    for chunk in stored.split(form, codes, [multipliers(scales, np)], found):
        stored.dequantize(*chunk)
    compiled = jax.jit(lambda c, s: form.dequantize(c, s, None, dtype))(codes, scales)
    np.testing.assert_array_equal(found, compiled)
    return found.astype(np.float32)


def fp8(shape: tuple[int, int], kind: type, dtype: np.dtype, rng) -> tuple:
    """Codes and scales for torch, and our product of them."""
    pieces = quantise.to_fp8("w", rng.normal(size=shape).astype(np.float32), kind)
    codes, scales = pieces["w"], pieces["w_scale_inv"]
    found = ours(Form(shape, Whole(), quantise.BLOCK), codes, scales, dtype)
    return to_torch(codes), to_torch(scales), found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [np.float32, E8M0])
def test_fp8(kind, dtype, rng):
    codes, scales, found = fp8((64, 48), kind, jnp.dtype(dtype), rng)
    theirs = importlib.import_module("transformers.integrations.finegrained_fp8")
    op = theirs.Fp8Dequantize(None)
    wanted = op._dequantize_one(codes, scales, getattr(torch, dtype))
    np.testing.assert_array_equal(found, wanted.float().numpy())


@pytest.mark.parametrize("kind", [np.float32, E8M0])
def test_fp8_of_a_shape_that_blocks_do_not_divide(kind, rng):
    """`Fp8Dequantize` refuses it; the backward pass of the same file has the formula."""
    codes, scales, found = fp8((70, 41), kind, np.dtype(np.float32), rng)
    theirs = importlib.import_module("transformers.integrations.finegrained_fp8")
    with pytest.raises(ValueError, match="not divisible by scale grid"):
        theirs.Fp8Dequantize(None)._dequantize_one(codes, scales)
    block = list(quantise.BLOCK)
    wanted = theirs._dequantize_fp8_weight(codes, scales, block, torch.float32)
    np.testing.assert_array_equal(found, wanted.numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mxfp4(dtype, rng):
    theirs = importlib.import_module("transformers.integrations.mxfp4")
    codes = rng.integers(0, 256, (3, 10, 2, 16)).astype(np.uint8)
    scales = rng.integers(90, 150, (3, 10, 2)).astype(np.uint8)
    form = Form((3, 64, 10), FP4(), (1, 32), transposed=True)
    found = ours(form, codes.reshape(form.codes_shape), scales, jnp.dtype(dtype))
    args = torch.tensor(codes), torch.tensor(scales)
    wanted = theirs.convert_moe_packed_tensors(*args, dtype=getattr(torch, dtype))
    np.testing.assert_array_equal(found, wanted.float().numpy())


@pytest.mark.parametrize("kind", sorted(CASES))
def test_kept_says_what_transformers_says(kind, tmp_path):
    """transformers reads our export of the dequantised weights; ours stay quantised."""
    folder = quantise.make(FOLDER / CASES[kind], tmp_path / kind, kind)
    floats, kept = load(folder, dtype=jnp.float32), load(folder)
    save_hf(tmp_path / "floats", floats.config, floats.params, source=floats.source)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "floats",
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    ).eval()
    ids = np.random.default_rng(1).integers(3, 97, (2, 7))
    with torch.no_grad():
        wanted = reference(torch.tensor(ids)).logits.numpy()
    found = jax.jit(zoo.Decoder(kept.config).apply)(kept.params, ids).logits
    assert np.abs(np.asarray(found) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_verify(tmp_path):
    """Kimi K2: quantised, and of a model type that transformers does not have."""
    folder = quantise.make(FOLDER / "deepseek_v3_yarn", tmp_path / "fp8", "fp8")
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hf | {"model_type": "kimi_k2"}))
    report = zoo.verify(folder, 8, 4)
    assert report.exact
    assert report.logits_error < 1e-5
    assert report.greedy_equal
