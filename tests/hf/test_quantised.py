"""Quantised folders: dequantised they mean what they say, kept they come back as they were."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests import examples
from tests.hf import quantise
from tests.hf.test_load import FOLDER, rewrite
from tests.hf.test_save import contents
from zoo import cache, checkpoint, models
from zoo.axes import rules_in_force
from zoo.hf.layout import shapes
from zoo.hf.load import flatten, load
from zoo.hf.quantization import read
from zoo.hf.save import save_hf
from zoo.hf.table import expand
from zoo.inference import generate
from zoo.inference.sampling import from_options
from zoo.inference.unstack import prepare, unstack
from zoo.quantized import Matrix, Quantized, each_quantized

CASES = {
    "fp8": "deepseek_v3_yarn",  # in shards; keys and values share tensors whose blocks they cut
    "ue8m0": "qwen3_moe",
    "int4": "deepseek_v3_full_q",
    "int8": "llama_tied_llama3_bias",
    "mxfp4": "gpt_oss",
    "gptq": "llama_tied_llama3_bias",
    "awq": "qwen3_window",
}
GROUP = quantise.CONFIGS["int4"]["config_groups"]["group_0"]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module", params=sorted(CASES))
def folder(request, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / request.param
    return quantise.make(FOLDER / CASES[request.param], out, request.param)


@pytest.fixture
def broken(tmp_path):
    """A quantised llama, to be broken: its folder, by the kind of quantisation."""
    return lambda kind, **of: quantise.make(FOLDER / "llama", tmp_path / kind, kind, **of)


def written_out(folder: Path, to: Path) -> Path:
    """The same checkpoint in float32, dequantised by the tests' own arithmetic."""
    found = quantise.tensors_of(folder)
    ckpt = load(folder, dtype=jnp.float32)
    save_hf(to, ckpt.config, ckpt.params)
    change = lambda t: t.update({n: quantise.meaning(found, n, w.shape) for n, w in t.items()})  # noqa: E731
    rewrite(to, change)
    return to


def equal(a: dict, b: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(found: jax.Array, wanted: jax.Array) -> None:
    """Equal but for sums in another order, where XLA computes weights within a product."""
    assert jnp.abs(found - wanted).max() <= 3e-6 * jnp.abs(wanted).max()


def logits(ckpt) -> jax.Array:
    tokens = np.arange(14).reshape(2, 7) * 5 % 97
    return jax.jit(zoo.Decoder(ckpt.config).apply)(ckpt.params, tokens).logits


def test_dequantised_is_what_the_numbers_say(folder, tmp_path):
    wanted = load(written_out(folder, tmp_path / "floats"))
    found = load(folder, dtype=jnp.float32)
    equal(found.params, wanted.params)
    cast = load(folder, dtype=jnp.bfloat16).params
    equal(cast, load(tmp_path / "floats", dtype=jnp.bfloat16).params)
    assert any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(cast))


def test_zero_points_of_compressed_tensors(tmp_path):
    folder = quantise.make(FOLDER / "llama", tmp_path / "uint4", "uint4")
    found = load(folder, dtype=jnp.float32)
    equal(found.params, load(written_out(folder, tmp_path / "floats")).params)
    kept = load(folder)
    save_hf(tmp_path / "again", kept.config, kept.params, source=kept.source)
    assert contents(tmp_path / "again") == contents(folder)


@pytest.mark.parametrize("folder", ["fp8", "mxfp4", "awq"], indirect=True)
def test_kept_computes_what_dequantised_does(folder):
    kept, floats = load(folder), load(folder, dtype=jnp.float32)
    close(logits(kept), logits(floats))
    assert any(isinstance(v, Quantized) for v in flatten(kept.params).values())


def test_kept_comes_back_byte_for_byte(folder, tmp_path):
    ckpt = load(folder)
    save_hf(tmp_path / "again", ckpt.config, ckpt.params, source=ckpt.source)
    assert contents(tmp_path / "again") == contents(folder)


def test_kept_takes_the_bytes_of_the_files(folder):
    ckpt = load(folder)
    distinct = {id(leaf): leaf for leaf in jax.tree.leaves(ckpt.params)}.values()
    specs, extras = ckpt.source.specs, ckpt.source.extras
    stored = sum(spec.nbytes for name, spec in specs.items() if name not in extras)
    assert sum(leaf.nbytes for leaf in distinct) == stored
    assert all(name.endswith(("weight_shape", "g_idx")) for name in extras)
    flat = flatten(ckpt.params["params"])
    assert {path: tuple(leaf.shape) for path, leaf in flat.items()} == shapes(ckpt.config)


def test_kept_attends_to_a_cache(tmp_path):
    """Latent attention takes its weights apart there: they are not multiplied with x."""
    folder = quantise.make(FOLDER / "deepseek_v3_full_q", tmp_path / "fp8", "fp8")
    kept, floats = load(folder), load(folder, dtype=jnp.float32)

    @jax.jit
    def step(params):
        state = cache.init(kept.config, 2, 4, jnp.float32)
        return zoo.Decoder(kept.config).apply(params, np.array([[5], [6]]), cache=state).logits

    close(step(kept.params), step(floats.params))


def test_kept_generates(tmp_path):
    folder = quantise.make(FOLDER / "llama", tmp_path / "int8", "int8")
    kept, floats = load(folder), load(folder, dtype=jnp.float32)
    held = [x for x in flatten(kept.params).values() if isinstance(x, Quantized)]
    assert all(isinstance(x.view, Matrix) for x in held)  # so that they multiply by their codes
    assert len(held) == 7
    model = zoo.Decoder(kept.config)
    text = [zoo.generate(model, c.params, [[5, 6, 7]], max_new_tokens=8) for c in (kept, floats)]
    assert text[0] == text[1]


def test_generation_makes_no_floats_of_all_layers(tmp_path):
    """Of tensors of several parameters; those of latent attention go by heads."""
    cfg = zoo.config_from_hf(
        dict(
            model_type="deepseek_v3", vocab_size=64, hidden_size=128, intermediate_size=128,
            num_hidden_layers=4, first_k_dense_replace=4, num_attention_heads=8, q_lora_rank=64,
            num_key_value_heads=8, kv_lora_rank=192, qk_nope_head_dim=96, qk_rope_head_dim=16,
            v_head_dim=96,
        )
    )  # fmt: skip
    params = examples.random_params(zoo.Decoder(cfg))
    save_hf(tmp_path / "floats", cfg, params)
    kept = load(quantise.make(tmp_path / "floats", tmp_path / "fp8", "fp8")).params
    model, held = prepare(zoo.Decoder(cfg), kept)
    tokens, lengths = generate.pad([[1]])
    how = generate._How(8, jnp.dtype(jnp.float32), rules_in_force())
    program = generate._program.lower(
        model, held, tokens, lengths, from_options(), np.zeros(0, np.int32), jax.random.key(0), how
    )
    floats = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert program.compile().memory_analysis().temp_size_in_bytes < floats / 3
    texts = [zoo.generate(zoo.Decoder(cfg), p, [[1]], 8) for p in (kept, written(kept))]
    assert texts[0] == texts[1]


def written(params):
    """The floats that quantised parameters stand for."""
    return each_quantized(lambda leaf: leaf.dequantize(jnp.float32), params)


def test_kept_unstacks(folder):
    kept, floats = load(folder), load(folder, dtype=jnp.float32)
    layers = unstack(kept.config, kept.params)["params"]["stack_0_0"]["layer_0"]
    for path, leaf in flatten(layers).items():
        wanted = flatten(floats.params["params"]["stack_0"]["layer_0"])[path][0]
        found = leaf.dequantize(jnp.float32) if isinstance(leaf, Quantized) else leaf
        np.testing.assert_array_equal(found, wanted)


def test_experts_of_one_tensor_are_held_each_alone(tmp_path):
    kept = load(quantise.make(FOLDER / "gpt_oss", tmp_path / "mxfp4", "mxfp4"))
    held = {k: v for k, v in flatten(kept.params["params"]).items() if isinstance(v, Quantized)}
    moe = kept.config.stacks[0].layers[0].ffn
    assert {path.split("/")[-2] for path in held} == {"gate", "up", "down"}
    assert {node.lead for node in held.values()} == {(kept.config.stacks[0].repeats, moe.experts)}


def test_layers_of_multi_token_prediction(tmp_path):
    """DeepSeek-V3's files have one in FP8 too; its parameters do not lead with layers."""
    cfg = load(FOLDER / "deepseek_v3_full_q").config
    cfg = dataclasses.replace(cfg, mtp=cfg.layers[-1:])
    save_hf(tmp_path / "floats", cfg, examples.random_params(zoo.Decoder(cfg)))
    folder = quantise.make(tmp_path / "floats", tmp_path / "fp8", "fp8")
    kept, floats = load(folder), load(folder, dtype=jnp.float32)
    assert kept.config == cfg
    wanted, quantised = flatten(floats.params), 0
    for path, leaf in flatten(kept.params).items():
        if isinstance(leaf, Quantized) and "mtp_0" in path:
            quantised += 1
            np.testing.assert_array_equal(leaf.dequantize(jnp.float32), wanted[path])
    assert quantised == 13
    save_hf(tmp_path / "again", cfg, kept.params, source=kept.source)
    assert contents(tmp_path / "again") == contents(folder)


def test_mesh(folder, tmp_path):
    mesh = zoo.make_mesh("data=2,fsdp=2,expert=2")
    rules = {"embed": "fsdp", "experts": "expert"}
    cut = load(folder, mesh=mesh, rules=rules)
    equal(cut.params, load(folder).params)
    kinds = {
        leaf.codes.sharding.is_fully_replicated
        for leaf in flatten(cut.params).values()
        if isinstance(leaf, Quantized)
    }
    assert False in kinds
    save_hf(tmp_path / "again", cut.config, cut.params, source=cut.source)
    assert contents(tmp_path / "again") == contents(folder)
    floats = load(folder, mesh=mesh, rules=rules, dtype=jnp.float32)
    equal(floats.params, load(folder, dtype=jnp.float32).params)


def test_dequantised_is_saved_as_floats(folder, tmp_path):
    ckpt = load(folder, dtype=jnp.bfloat16)
    save_hf(tmp_path / "floats", ckpt.config, ckpt.params, source=ckpt.source)
    hf = json.loads((tmp_path / "floats" / "config.json").read_text())
    assert "quantization_config" not in hf
    assert hf.get("dtype", hf.get("torch_dtype")) == "bfloat16"
    again = load(tmp_path / "floats")
    equal(again.params, ckpt.params)
    assert again.source.extras == ()


def test_grids_of_deepseek_v3():
    """Shapes of the released files: 576 rows of kv_a take a fifth block, which is half empty."""
    hf = {"quantization_config": {**quantise.CONFIGS["fp8"], "weight_block_size": [128, 128]}}
    cfg, method = zoo.config("deepseek-v3"), read(hf)
    tensors = expand(cfg, models.family(cfg.family).table)
    grids = {
        "self_attn.kv_a_proj_with_mqa.weight": (5, 56),
        "self_attn.kv_b_proj.weight": (256, 4),
        "self_attn.o_proj.weight": (56, 128),
        "mlp.experts.255.down_proj.weight": (56, 16),
    }
    for name, grid in grids.items():
        stored = method(tensors[f"model.layers.3.{name}"])
        assert stored.scales.name == f"model.layers.3.{name}_scale_inv"
        assert stored.scales.shape == grid


def test_groups_choose_by_target():
    """Mixed releases: INT4 for routed experts by a pattern, FP8 per channel for all other maps."""
    channel = {"num_bits": 8, "type": "float", "strategy": "channel"}
    groups = {
        "experts": {**GROUP, "targets": [r"re:.*mlp\.experts\..*"], "format": "pack-quantized"},
        "rest": {"targets": ["Linear"], "weights": channel, "format": "float-quantized"},
    }
    mixed = {**quantise.CONFIGS["int4"], "config_groups": groups, "format": "mixed-precision"}
    cfg, method = zoo.config("kimi-k2"), read({"quantization_config": mixed})
    tensors = expand(cfg, models.family(cfg.family).table)
    expert = method(tensors["model.layers.1.mlp.experts.383.up_proj.weight"])
    assert expert.codes.name.endswith("experts.383.up_proj.weight_packed")
    assert (expert.codes.shape, expert.scales.shape) == (
        (2048, 896),
        (2048, 7168 // quantise.GROUP),
    )
    shared = method(tensors["model.layers.1.mlp.shared_experts.up_proj.weight"])
    assert shared.codes.name.endswith("shared_experts.up_proj.weight")
    assert (shared.codes.kinds, shared.scales.shape) == ((quantise.FP8,), (2048, 1))
    assert method(tensors["model.norm.weight"]) is None


BAD = {
    "missing_scale": (
        "fp8", lambda t: t.pop(UP + "_scale_inv"), f"lacks {UP}_scale_inv, a piece of {UP}",
    ),
    "missing_codes": (
        "int4", lambda t: t.pop(UP + "_packed"), f"lacks {UP}_packed, a piece of {UP}",
    ),
    "grid": (
        "fp8",
        lambda t: t.update({UP + "_scale_inv": t[UP + "_scale_inv"][:, :-1].copy()}),
        r"up_proj.weight_scale_inv has shape \[3, 2\]; for \[44, 32\] in blocks of \[16, 12\]",
    ),
    "packing": (
        "int4",
        lambda t: t.update({UP + "_packed": t[UP + "_packed"][:, :-1].copy()}),
        r"up_proj.weight_packed has shape \[44, 3\].*it must be \[44, 4\]",
    ),
    "scale_type": (
        "int8",
        lambda t: t.update({UP + "_scale": t[UP + "_scale"].astype(np.int32)}),
        "up_proj.weight_scale is I32; it must be BF16 or F16 or F32",
    ),
    "float_with_scales": (
        "fp8",
        lambda t: t.update({UP: t[UP].astype(np.float32)}),
        f"{UP}_scale_inv stands beside {UP}, which is F32",
    ),
    "another_type": (
        "int8",
        lambda t: t.update({UP: t[UP].astype(np.int16)}),
        "up_proj.weight is I16; it must be I8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_tensors(name, broken):
    kind, change, message = BAD[name]
    folder = broken(kind)
    rewrite(folder, change)
    for dtype in (None, jnp.float32):
        with pytest.raises(ValueError, match=message):
            load(folder, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("fp8", {"quant_method": "bitsandbytes"}, "quant_method='bitsandbytes' is not understood"),
        ("fp8", {"quant_method": None}, "quant_method=None is not understood: known are fp8, "),
        ("fp8", {"fmt": "e5m2"}, "fmt='e5m2' is not understood: only 'e4m3' is"),
        ("fp8", {"weight_block_size": [128]}, r"weight_block_size=\[128\] is not understood"),
        ("fp8", {"rotation": True}, "rotation=True is not understood: remove it if"),
        ("int4", {"format": "marlin-24"}, "format='marlin-24' is not understood"),
        ("int4", {"config_groups": {}}, "config_groups={} is not understood"),
        ("int4", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme="),
        ("gptq", {"desc_act": True}, "desc_act=True is not understood: only False is"),
        ("gptq", {"bits": 3}, "bits=3 is not understood: known are 4 and 8"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format='marlin' is not understood"),
        ("awq", {"version": "gemv"}, "version='gemv' is not understood: only 'gemm' is"),
        ("int4", {"num_bits": 3}, "num_bits=3 is not understood"),
        ("int4", {"strategy": "tensor_group"}, "strategy='tensor_group' is not understood"),
        ("int4", {"actorder": "group"}, "actorder='group' is not understood"),
    ],
)
def test_bad_config(kind, change, message, broken):
    config = {**quantise.CONFIGS[kind]}
    if change.keys() <= {"num_bits", "strategy", "actorder"}:
        change = {"config_groups": {"g": {**GROUP, "weights": {**GROUP["weights"], **change}}}}
    with pytest.raises(ValueError, match=message):
        load(broken(kind, config={**config, **change}))


def test_layers_stored_in_different_ways_are_not_kept(broken):
    only = re.compile(r"model\.layers\.0\..*_proj\.weight")
    folder = broken("fp8", chosen=only)
    with pytest.raises(ValueError, match=r"0\S+ and \S+1\S+ are stored in .* load with a dtype"):
        load(folder)
    load(folder, dtype=jnp.float32)


def test_what_cannot_be_saved(broken, tmp_path):
    folder = broken("fp8")
    kept, floats = load(folder), load(folder, dtype=jnp.float32)

    def refuses(message, params, **of):
        with pytest.raises(ValueError, match=message):
            save_hf(tmp_path / "out", kept.config, {"params": params}, **of)
        assert not (tmp_path / "out").exists()

    tree = kept.params["params"]
    refuses("params are quantised, which only their source", tree)
    refuses("params are quantised, which only", tree, source=kept.source, dtype=jnp.float32)
    plain = floats.params["params"]["stack_0"]["layer_0"]
    layer = {**tree["stack_0"]["layer_0"], "mlp": plain["mlp"]}
    refuses(
        r"mlp/gate/w has the form None, but model\.layers\.0\.mlp\.gate_proj\.weight",
        {**tree, "stack_0": {"layer_0": layer}},
        source=kept.source,
    )
    with pytest.raises(ValueError, match="a run holds floats, but these params are quantised"):
        checkpoint.save_run(tmp_path / "run", kept.config, kept.params)


def test_keys_of_other_programs(broken):
    """Lists of exceptions and calibration are not needed, and do no harm."""
    config = {**quantise.CONFIGS["fp8"], "modules_to_not_convert": ["lm_head"], "scale_fmt": None}
    assert load(broken("fp8", config=config)).source.extras == ()
