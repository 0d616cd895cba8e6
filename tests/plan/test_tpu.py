"""Programs compiled for TPUs by their own compiler: kernels, collectives, memory."""

import re

import jax
import pytest
from jax.sharding import SingleDeviceSharding

import zoo
from tests.examples import CONFIGS
from tests.test_expert_parallel import gradient_on
from zoo import cache, grouped_tpu, owners, sharding
from zoo.plan import Workload, compiled, hlo, make_plan, parse
from zoo.sharding import find_rules, make_mesh

pytestmark = [
    pytest.mark.skipif(not compiled.available(), reason="needs libtpu, the extra `plan`"),
]

_ROPE = zoo.Rope(64)
_LOCAL = zoo.Attention(4, 2, 64, _ROPE, window=128, softcap=30.0)
_FULL = zoo.Attention(4, 2, 64, _ROPE)
_LATENT = zoo.MLA(4, 64, 64, 32, 32, 32, zoo.Rope(32))
_MLP, _MOE = zoo.MLP(256), zoo.MoE(8, 2, 128, shared=zoo.MLP(128))


def config(repeats, *layers):
    return zoo.Config(512, 128, (zoo.Stack(repeats, tuple(zoo.Layer(*la) for la in layers)),))


DENSE = config(3, (_LOCAL, _MLP), (_FULL, _MLP))
EXPERTS = config(3, (_FULL, _MOE))
LATENT = config(2, (_LATENT, _MLP))


def plan(cfg, topology, mesh, mode, batch, length=256):
    return make_plan(cfg, Workload(mode, batch, length), parse(topology), mesh)


def calls(found, part):
    return sum(n for name, n in found.kernels.items() if part in name)


def test_training_on_one_v5e():
    """Both layers of three repeats attend by splash: forward, recomputed, and two backward."""
    found = plan(DENSE, "v5e:1", "", "train", 2)
    assert found.how.startswith("compiled by libtpu")
    assert found.fits
    assert calls(found, "splash_mha_fwd") == 2 * 6
    assert calls(found, "splash_mha_dq") == calls(found, "splash_mha_dkv") == 6
    assert not found.collectives
    needed = found.model_flops + found.recomputed
    assert 0.6 < found.product_flops / needed < 1.1
    places = {place for place, kind in found.busy if kind == "products"}
    assert places >= {"attention, projections", "attention, the rest", "MLP"}
    assert sum(found.busy.values()) == found.compiled_seconds > found.compute_seconds


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "tpu7x"])
def test_clocks_make_peaks_of_cycles(chip):
    """The compiler expects a large product to come near a device's peak, and not to exceed it."""
    topology = parse(f"{chip}:1")
    try:
        where = SingleDeviceSharding(compiled.devices(topology)[0])
    except compiled.CannotCompile as e:  # libtpu of jax 0.7.2 does not know tpu7x
        pytest.skip(str(e))
    square = jax.ShapeDtypeStruct((16384, 16384), "bfloat16", sharding=where)
    counted = hlo.count(jax.jit(jax.numpy.matmul).lower(square, square).compile().as_text())
    rate = counted.flops * topology.chip.clock / sum(counted.cycles.values())
    assert counted.flops == 2 * 16384**3
    assert 0.75 < rate / (topology.chip.flops / topology.chip.cores) < 1


def test_experts_on_one_v6e():
    """Three products per layer forward, two at least recomputed, and two gradients of each."""
    found = plan(EXPERTS, "v6e:1", "", "train", 2)
    assert found.kernels["tgmm"] == 3 * 3
    assert 3 * (3 + 2 + 3) <= found.kernels["gmm"] <= 3 * (3 + 3 + 3)
    assert calls(found, "splash_mha_fwd") == 2 * 3
    assert 0.7 < found.product_flops / (found.model_flops + found.recomputed) < 1.15
    assert found.busy["experts", "products"] > 0


def test_training_on_four_v5e_gathers_weights():
    found = plan(DENSE, "v5e:2x2", "data=2,fsdp=2", "train", 4)
    axes = {(one.kind, one.axes) for one in found.collectives}
    assert ("all-gather", ("fsdp",)) in axes
    assert calls(found, "splash_mha_fwd") == 2 * 6
    alone = plan(DENSE, "v5e:1", "", "train", 4)
    assert found.product_flops == pytest.approx(alone.product_flops, rel=0.1)
    assert found.memory.optimizer < 0.6 * alone.memory.optimizer
    assert alone.waiting_seconds == 0 < found.waiting_seconds <= found.link_seconds
    assert found.compiled_seconds == sum(found.busy.values()) + found.waiting_seconds


def test_experts_on_four_v5e_stay_and_their_tokens_travel():
    """Matrices of experts are gathered over fsdp at most; rows go over the axis expert."""
    found = plan(EXPERTS, "v5e:2x2", "fsdp=2,expert=2", "train", 4)
    assert found.kernels["tgmm"] == 3 * 3
    travelling = [one for one in found.collectives if one.kind == "ragged-all-to-all"]
    assert {one.axes for one in travelling} == {("expert",)}
    weights = 3 * 3 * 8 * 128 * 128 * 2
    gathered = [one for one in found.collectives if one.kind == "all-gather"]
    assert sum(one.bytes for one in gathered if "expert" in one.axes) < weights / 8


def test_rows_of_a_crowded_owner_come_in_turns_on_v5e(monkeypatch):
    """A loop in either pass: rows and weights there, rows back; both and gradients there, two back.
    A loop whose turns are not known counts once."""
    monkeypatch.setattr(owners, "SLACK", 0)
    monkeypatch.setattr(owners, "LEAST", 16)
    mesh = zoo.make_mesh("expert=8", devices=compiled.devices(parse("v5e:2x4")))
    gradient, given = gradient_on(mesh)
    with sharding.use(mesh, "expert"):
        text = gradient.lower(given).compile().as_text()
    found = hlo.count(text, list(mesh.shape.items()))
    (travelling,) = (one for one in found.collectives if one.kind == "ragged-all-to-all")
    assert travelling.calls == 3 + 5
    assert found.kernels == {"gmm": 3 + 2 + 3, "tgmm": 3}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_products_of_large_experts_fit_on_a_core(dtype):
    """With tiles of the largest size: all three, as a layer's gradient has them."""
    where = SingleDeviceSharding(compiled.devices(parse("v5p:1"))[0])

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=where)

    def products(x, w, sizes):
        y = grouped_tpu.gmm(x, w, sizes)
        return grouped_tpu.gmm_transposed(y, w, sizes), grouped_tpu.tgmm(x, y, sizes)

    arguments = shape(2048, 2048), shape(2, 2048, 2048), shape(2, dtype="int32")
    text = jax.jit(products).lower(*arguments).compile().as_text()
    assert hlo.count(text).kernels == {"gmm": 2, "tgmm": 1}


def test_prefill_on_v5p():
    found = plan(DENSE, "v5p:2x2x1", "fsdp=2,tensor=2", "prefill", 4)
    assert calls(found, "splash_mha_fwd") == 6
    assert {axis for one in found.collectives for axis in one.axes} >= {"tensor"}


@pytest.mark.parametrize("mesh", ["data=1", "data=2,tensor=2"])
def test_a_decoding_step_copies_no_layer_of_its_cache(mesh):
    """Products read it where it lies, and tokens are written there: nothing else makes a part."""
    topology, rows, heads = ("v6e:1", 8, 2) if mesh == "data=1" else ("v5e:2x2", 4, 1)
    devices = make_mesh(mesh, compiled.devices(parse(topology)))
    text = compiled.compile_for(DENSE, Workload("decode", 8, 2048), devices, find_rules()).text
    layer = rf"{rows},{heads},2048,64\]"
    made = rf"= [^=]*bf16\[(3,|1,)?{layer}.* (fusion|copy|copy-start|dynamic-slice|scatter)\("
    assert len(re.findall(rf"bf16\[3,{layer}\S* dynamic-update-slice\(", text)) == 4 * rows
    assert not [line for line in _unfused(text) if re.search(made, line)]


def test_experts_stay_among_those_of_all_layers():
    """Kernels that decode take the matrices of all three layers, and nothing cuts a layer out."""
    devices = make_mesh("data=1", compiled.devices(parse("v6e:1")))
    found = compiled.compile_for(EXPERTS, Workload("decode", 8, 256), devices, find_rules())
    assert found.counted.kernels == {"gmm": 3 * 3}
    assert not [line for line in _unfused(found.text) if re.search(r"= bf16\[8,128,128\]", line)]
    assert len(re.findall(r"custom-call\(.*bf16\[24,128,128\]", found.text)) == 3


def _unfused(text):
    """The lines of a program's text that are not part of a fusion."""
    parts = re.split(r"\n(?=%|ENTRY)", text)
    fused = set(re.findall(r"fusion\(.*calls=(%[\w.-]+)", text))
    return [li for part in parts if part.split(" ", 1)[0] not in fused for li in part.split("\n")]


def test_latent_decoding_on_tpu7x():
    found = plan(LATENT, "tpu7x:2x2x1", "data=8", "decode", 16)
    assert found.memory.cache == 16 * 256 * 2 * (64 + 32) * 2 / 4 + 16 * 4 / 4
    assert not calls(found, "splash")


@pytest.mark.parametrize("kind", ["features", "delta"])
def test_everything_a_config_can_say_compiles(kind):
    assert plan(CONFIGS[kind], "v5e:1", "", "prefill", 1, 16).fits


def test_what_does_not_fit_says_by_how_much():
    found = make_plan(zoo.config("qwen3-8b"), Workload("decode", 8, 2048), parse("v5e:1"))
    assert not found.fits
    assert "gave up" in found.how
    caches = 8 * 2048 * cache.bytes_per_token(found.cfg)
    assert found.memory.total == pytest.approx(2 * 8.19e9 + caches, rel=0.1)


@pytest.mark.parametrize(("topology", "mesh"), [("v5e:3x5", "data=15"), ("v4:2x2x2", "data=8")])
def test_a_slice_that_there_is_not_is_planned_by_arithmetic(topology, mesh):
    found = plan(DENSE, topology, mesh, "decode", 120)
    assert found.how.startswith(f"arithmetic: topology {topology}")
