"""Exported programs, run where this package cannot be imported, make the tokens of `generate`."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export as jax_export

import zoo
from tests.examples import random_params
from zoo import cli
from zoo.hf import safetensors
from zoo.inference.export import Sizes, export

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_exported.py"
PROMPT = [5, 17, 80, 3, 44, 9, 61]  # three pieces of 3, the last of one token
SIZES = Sizes(batch=2, length=24, piece=3)
ALONE = """
import runpy, sys
sys.modules["zoo"] = sys.modules["flax"] = None  # importing them fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny mixture of experts, whose kernels differ by platform, with a tokenizer file."""
    made = tmp_path_factory.mktemp("made") / "hf"
    cfg = zoo.config_from_hf(
        dict(
            model_type="qwen3_moe", vocab_size=97, hidden_size=32, intermediate_size=48,
            moe_intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
            norm_topk_prob=True, decoder_sparse_step=1, max_position_embeddings=64,
            tie_word_embeddings=False, mlp_only_layers=[1],
        )
    )  # fmt: skip
    zoo.save_hf(made, cfg, random_params(zoo.Decoder(cfg)), generation={"eos_token_id": 96})
    (made / "chat_template.jinja").write_text("{{ messages }}")
    return made


@pytest.fixture(scope="module")
def exported(folder):
    """For all platforms, by the command."""
    out = folder.with_name("out")
    sizes = [f"--{name}={value}" for name, value in SIZES._asdict().items()]
    platforms = "--platforms=cpu,cuda,tpu"
    assert cli.main(["export", str(folder), str(out), platforms, *sizes]) == 0
    return out


def test_example_makes_the_tokens_of_generate_without_zoo(folder, exported):
    command = [sys.executable, "-c", ALONE, EXAMPLE, exported, "--new", "12", "--tokens"]
    done = subprocess.run([*command, *map(str, PROMPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = zoo.load(folder)
    (want,) = zoo.generate(zoo.Decoder(found.config), found.params, [PROMPT], 12, eos=96)
    assert list(map(int, done.stdout.split())) == want
    assert len(set(want)) > 3


def test_example_refuses_tokens_that_the_model_has_not(exported, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["run_exported.py", str(exported), "--tokens", "9999", "--new", "1"]
    )
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "--tokens must be below" in capsys.readouterr().err


def test_one_program_per_platform_without_weights_in_it(folder, exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert list(manifest["programs"]) == ["cpu", "cuda", "tpu"]
    for platform, files in manifest["programs"].items():
        for name, piece in (("prefill", SIZES.piece), ("decode", 1)):
            program = jax_export.deserialize(bytearray((exported / files[name]).read_bytes()))
            assert program.platforms == (platform,)
            assert program.in_avals[-2].shape == (SIZES.batch, piece)
            assert program.out_avals[0].shape == (SIZES.batch, 97)
            assert "dense_resource" not in program.mlir_module()
            assert program.mlir_module().count("stablehlo.constant") < 1000
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(zoo.load(folder).params))
    assert weights <= (exported / "weights.safetensors").stat().st_size < 1.3 * weights
    assert (exported / "chat_template.jinja").read_text() == "{{ messages }}"


def test_rounded_weights_are_exported_as_they_are(folder, tmp_path, capsys, monkeypatch):
    """The example makes of them what `generate` does."""
    checkpoint = zoo.load(folder, quantize="int8")
    out = export(checkpoint, tmp_path / "out", sizes=SIZES)
    manifest = json.loads((out / "manifest.json").read_text())
    weights = safetensors.File(out / "weights.safetensors")
    assert "stack_0_0/layer_0/attn/q/w/codes" in manifest["weights"]
    assert sum(weights.specs[name].dtype == np.int8 for name in manifest["weights"]) == 14
    file = out / manifest["programs"]["cpu"]["prefill"]
    program = jax_export.deserialize(bytearray(file.read_bytes()))
    arrays = [weights[name] for name in manifest["weights"]]
    cache = [np.zeros(c["shape"], c["dtype"]) for c in manifest["cache"]]
    tokens = np.array([PROMPT[:3], [7, 0, 0]], np.int32)
    logits, _ = program.call(arrays, cache, tokens, np.array([3, 1], np.int32))
    apply = jax.jit(zoo.Decoder(checkpoint.config).apply)
    want = apply(checkpoint.params, tokens).logits
    want = np.stack((want[0, 2], want[1, 0]))
    np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())
    asked = ["--new", "12", "--tokens", *map(str, PROMPT)]
    monkeypatch.setattr("sys.argv", ["run_exported.py", str(out), *asked])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    model = zoo.Decoder(checkpoint.config)
    (want,) = zoo.generate(model, checkpoint.params, [PROMPT], 12, eos=96)
    assert list(map(int, capsys.readouterr().out.split())) == want
    assert len(set(want)) > 3


def test_what_cannot_be_exported_is_named(folder, exported, tmp_path):
    checkpoint = zoo.load(folder)
    with pytest.raises(ValueError, match="exists: name a folder to make"):
        export(checkpoint, exported)
    with pytest.raises(ValueError, match="'metal' is not one of cpu, cuda, tpu"):
        export(checkpoint, tmp_path / "out", ["cpu", "metal"])
    with pytest.raises(ValueError, match="cpu,cpu' must name each of them once"):
        export(checkpoint, tmp_path / "out", ["cpu", "cpu"])
    with pytest.raises(ValueError, match="length=65 passes the 64 tokens"):
        export(checkpoint, tmp_path / "out", sizes=Sizes(length=65))
    with pytest.raises(ValueError, match="must all be at least 1"):
        export(checkpoint, tmp_path / "out", sizes=Sizes(piece=0))
    assert not list(tmp_path.iterdir())


def test_bad_folder_ends_with_one_line(capsys, tmp_path):
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "has no config.json" in capsys.readouterr().err
