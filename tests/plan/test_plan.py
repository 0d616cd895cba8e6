"""The planner: published cases, arithmetic that must hold, and search."""

from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

import zoo
from tests.training.tiny import get_config
from zoo import sharding
from zoo.config import Config
from zoo.describe import size
from zoo.plan import CHIPS, Workload, hardware, kernels, make_plan, parse
from zoo.plan.hlo import Collective, Counted
from zoo.plan.layout import Layout
from zoo.plan.planner import _collectives
from zoo.plan.search import _ordered, meshes, search
from zoo.plan.workload import program
from zoo.training.optimizer import make_optimizer
from zoo.training.run import find_config, load_params
from zoo.training.settings import Lora, from_config
from zoo.training.step import state_shardings
from zoo.training.throughput import flops_per_token

GiB = 2**30


def plan(name, topology, mesh, mode, batch, length, **how):
    if mode in ("lora", "int8", "int4"):
        mode, how["lora"] = "train", Lora(base="stored" if mode == "lora" else mode)
    work = Workload(mode, batch, length, **how)
    return make_plan(zoo.config(name), work, parse(topology), mesh, compile=False)


@pytest.mark.parametrize(
    ("name", "topology", "mesh", "mode", "batch", "length", "fits"),
    [
        ("qwen3-0.6b", "v5e:1", "", "train", 4, 2048, True),
        ("qwen3-0.6b", "v5e:1", "", "lora", 8, 2048, True),
        ("qwen3-4b", "v5e:1", "", "train", 1, 2048, False),
        ("qwen3-4b", "v5e:1", "", "lora", 1, 2048, True),
        ("qwen3-8b", "v5e:1", "", "train", 1, 2048, False),
        ("qwen3-8b", "v5e:1", "", "lora", 1, 2048, False),
        ("qwen3-8b", "v5e:1", "", "int4", 1, 2048, True),
        ("qwen3-14b", "v5e:1", "", "int8", 1, 2048, False),
        ("llama-3.1-8b", "v5e:4x4", "fsdp=-1", "train", 16, 4096, True),
        ("deepseek-v3", "v5p:8x8x16", "fsdp=16,expert=64", "train", 1024, 4096, True),
        ("deepseek-v3", "v5e:16x16", "fsdp=4,expert=64", "train", 256, 4096, False),
        ("kimi-k2", "v6e:16x16", "fsdp=8,expert=32", "decode", 512, 8192, True),
        ("kimi-k2", "v6e:8x8", "fsdp=2,expert=32", "decode", 64, 8192, False),
        ("llama-3.1-70b", "h100:8", "tensor=8", "decode", 32, 8192, True),
        ("llama-3.1-70b", "a100:1", "", "decode", 1, 8192, False),
        ("qwen3-0.6b", "t4:1", "", "decode", 8, 4096, True),
    ],
)
def test_published_cases(name, topology, mesh, mode, batch, length, fits):
    found = plan(name, topology, mesh, mode, batch, length)
    assert found.fits == fits
    assert found.how == "arithmetic"


def test_state_is_what_shardings_say():
    """AdamW keeps two float32 numbers beside each parameter; a mesh divides all three."""
    alone = plan("qwen3-0.6b", "v5p:1", "", "train", 8, 512)
    assert alone.memory.parameters == 4 * size(zoo.config("qwen3-0.6b")).parameters
    assert alone.memory.optimizer == pytest.approx(2 * alone.memory.parameters, rel=1e-6)
    spread = plan("qwen3-0.6b", "v5p:2x2x2", "fsdp=8", "train", 8, 512)
    assert spread.memory.parameters == pytest.approx(alone.memory.parameters / 8, rel=0.01)
    two = plan("qwen3-0.6b", "tpu7x:2x2x1", "fsdp=8", "train", 8, 512)
    assert two.memory.parameters == pytest.approx(2 * spread.memory.parameters)


def test_adapters_alone_have_gradients_and_moments():
    """Qwen3-0.6B: A and B of seven maps in each of 28 layers, beside its weights in bfloat16."""
    cfg = zoo.config("qwen3-0.6b")
    found = plan("qwen3-0.6b", "v5p:1", "", "lora", 8, 512)
    q, kv, d, f = 16 * 128, 8 * 128, 1024, 3072
    learnt = 28 * 16 * (2 * (d + q) + 2 * (d + kv) + 3 * (d + f))
    assert found.memory.parameters == 2 * size(cfg).parameters + 4 * learnt
    assert found.memory.optimizer == pytest.approx(8 * learnt, rel=1e-5)
    whole = plan("qwen3-0.6b", "v5p:1", "", "train", 8, 512)
    assert whole.memory.temporaries - found.memory.temporaries == pytest.approx(
        4 * (size(cfg).parameters - learnt), rel=1e-5
    )
    assert 0.66 < found.model_flops / whole.model_flops < 0.75
    spread = plan("qwen3-0.6b", "v5p:2x2x2", "fsdp=8", "lora", 8, 512)
    cut = 28 * 16 * (7 * d / 8 + 2 * q + 2 * kv + 3 * f)  # fsdp cuts the side of the embedding
    assert spread.memory.optimizer == pytest.approx(8 * cut, rel=1e-5)
    assert {one.kind for one in spread.collectives} == {"all-gather", "all-to-all"}


@pytest.mark.parametrize("base", ["int8", "int4", "fp8"])
def test_rounded_weights_are_as_loaded(base):
    """Codes, scales and adapters, each of the shape and type that a device holds in training."""
    mesh = zoo.make_mesh("data=2,fsdp=2,expert=2")
    config = get_config("data=2,fsdp=2,expert=2")
    config.model, config.init_from = None, str(Path(__file__).parents[1] / "golden/deepseek_v2")
    config.lora = ConfigDict(dict(rank=2, base=base))
    settings = from_config(config)
    rules, cfg = sharding.find_rules(None), find_config(settings)
    held = load_params(settings, mesh, None)
    placed = state_shardings(
        zoo.Decoder(cfg), make_optimizer(settings.optimizer, 9), mesh, None, held
    )
    found = program(cfg, Workload("train", 8, 8, lora=settings.lora), mesh, rules).parts.params
    assert jax.tree.structure(found) == jax.tree.structure(held)
    rounded = 0
    for a, b, where in zip(*map(jax.tree.leaves, (found, held, placed.params)), strict=True):
        assert a.shape == b.shape
        assert a.sharding.shard_shape(a.shape) == where.shard_shape(b.shape)
        if b.dtype.itemsize == 1:
            rounded += 1
            assert a.dtype == b.dtype
    assert rounded > 10


def test_a_cache_is_what_it_is():
    found = plan("deepseek-v3", "v5p:4x4x4", "fsdp=8,expert=8", "decode", 64, 4096)
    per_token = size(zoo.config("deepseek-v3")).cache_bytes
    assert found.memory.cache == pytest.approx(64 * 4096 * per_token / 64, rel=1e-3)


def test_training_flops_are_those_of_the_meter():
    """The meter of training counts whole windows (PaLM), the planner what a token sees: half."""
    cfg = zoo.config("llama-2-7b")
    found = plan("llama-2-7b", "v5p:4x4x4", "fsdp=64", "train", 64, 4096).model_flops
    products = 6 * 4096 * 32 * 32 * 128 * 2
    assert found / (64 * 4096) == pytest.approx(flops_per_token(cfg, 4096) - products / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "topology", "mesh", "batch", "length", "published"),
    [
        ("llama-3.1-8b", "v6e:16x16", "fsdp=256", 768, 8192, 0.4546),
        ("llama-2-70b", "v5p:8x8x8", "fsdp=512", 2048, 4096, 0.654),
        ("mixtral-8x7b", "v5p:4x4x8", "fsdp=16,expert=8", 1024, 4096, 0.5256),
    ],
)
def test_measured_runs_stay_below_the_roofline(name, topology, mesh, batch, length, published):
    """MaxText's published utilisation; docs/plan.md shows how far the estimate is from it."""
    found = plan(name, topology, mesh, "train", batch, length)
    assert published < found.mfu(found.least_seconds)
    assert 0.6 < published / found.mfu(found.seconds) < 1.05


def test_kernels_by_hand():
    """Of attention what its blocks of 512 do not skip; rows of experts that there are, not those
    that buffers hold; matrices that have to be read."""
    cfg, topology = zoo.config("mixtral-8x7b"), parse("v5p:2x1x1")
    peak, layers = topology.chip.flops, 3 * 32 * 4096 * 14336
    train, decode = Workload("train", 4, 2048), Workload("decode", 4, 2048)
    counted = Counted(attended=1e15, stated=1e20, given={("MLP", "products"): 2765e9})

    def seconds(cfg, work, counted=counted):
        layout = Layout(cfg, work, {"expert": 2}, sharding.find_rules(None))
        return kernels.seconds(counted, layout, topology)

    found = seconds(cfg, train)
    assert found["attention, the rest", "products"] == 1e15 * (1 + 2 + 3 + 4) / 16 / peak
    assert found["experts", "products"] == (3 + 1) * 2 * layers * 2 * 4 * 2048 / 2 / peak
    assert found["MLP", "products"] == 1
    small = seconds(cfg, train, Counted(stated=1e12))
    assert list(small) == [("experts", "products")]
    touched = 1 - (1 - 2 / 8) ** 4
    read = seconds(cfg, decode)["experts", "products"]
    assert read == pytest.approx(2 * layers * 8 * touched / 2 / topology.chip.hbm)
    near = seconds(zoo.config("gemma-3-1b"), train)["attention, the rest", "products"]
    seen = (22 * (1 + 3 * 2) + 4 * 10) / 26  # blocks: 22 layers of 26 see 512 tokens back
    assert near == pytest.approx(1e15 * seen / 16 / peak)


def test_links_by_hand():
    """A ring of 16 v5e chips, both ways: 15/16 of the bytes at 100 GB/s; four chips are a line."""
    topology = parse("v5e:16x16")
    assert topology.bandwidth(16) == 2 * topology.chip.link
    assert topology.bandwidth(256) == 4 * topology.chip.link
    assert topology.bandwidth(4) == topology.chip.link
    assert topology.hops(16) == 4
    assert parse("h100:64").bandwidth(8) == 9 * parse("h100:64").bandwidth(16)


def test_links_between_slices_by_hand():
    """Two slices: `data` reduces over the network alone, `fsdp` gathers within and across."""
    slow = parse("v5p:4x4x4").chip.network
    found = plan("llama-3.1-8b", "2xv5p:4x4x4", "data=2,fsdp=64", "train", 128, 4096)
    assert found.topology.devices == 128
    reduced = [one for one in found.collectives if one.axes == ("data",)]
    for one in reduced:
        assert found.seconds_of(one) == pytest.approx(2 * one.bytes / 2 / slow)
    alone = plan("llama-3.1-8b", "v5p:4x4x4", "fsdp=64", "train", 64, 4096)
    less = sum(map(found.seconds_of, reduced))
    assert found.link_seconds - less == pytest.approx(alone.link_seconds)
    across = plan("llama-3.1-8b", "2xv5p:4x4x4", "fsdp=128", "train", 128, 4096)
    gathered, within = across.collectives[0], alone.collectives[0]
    assert across.seconds_of(gathered) == pytest.approx(
        alone.seconds_of(within) + gathered.bytes / 64 / 2 / slow, rel=1e-3
    )
    with pytest.raises(ValueError, match="over 2 slices: make one of data"):
        plan("llama-3.1-8b", "2xv5p:2x2x1", "tensor=8", "decode", 8, 4096)


def test_what_goes_between_slices_is_by_arithmetic():
    """The compiled text does not size it; what stays within a slice is as compiled."""
    cfg, work = zoo.config("qwen3-0.6b"), Workload("train", 16, 512)
    sizes = sharding.mesh_sizes("data=2,fsdp=4")
    layout = Layout(cfg, work, sizes, sharding.find_rules(None))
    inside = Collective("all-gather", ("fsdp",), 4, 3, 5)
    counted = Counted(collectives=[inside, Collective("all-reduce", ("data",), 2, 1, 1)])
    found = _collectives(layout, counted, {"data": 2})
    assert found[0] == inside
    assert {one.axes for one in found[1:]} == {("data",)}
    reduced = sum(one.bytes for one in found[1:] if one.axes == ("data",))
    assert reduced > 2 * size(cfg).parameters / 4  # in bfloat16, of a quarter
    assert _collectives(layout, counted, {}) == tuple(counted.collectives)


def test_stages_by_hand():
    """32 layers of Llama 3.1 8B on four chips: 8 microbatches of 2 rows go around twice."""
    how = "llama-3.1-8b", "v5p:2x2x1", "stage=4", "train", 16, 2048
    found = plan(*how, microbatches=8, rounds=2)
    assert found.schedule.ticks == 8 * 2 + 3
    assert found.schedule.bubble == 3 / 19
    head = 3 * 2 * 16 * 2048 * 4096 * 128256
    staged = found.model_flops + found.recomputed - head
    assert found.lost == pytest.approx(staged * 3 / 16 + head * 3)
    layers = size(zoo.config("llama-3.1-8b")).parameters - 2 * 128256 * 4096
    passed, told, dealt = (one for one in found.collectives if one.axes == ("stage",))
    assert (passed.kind, passed.calls) == ("collective-permute", 2 * 19)
    assert passed.bytes == 2 * 19 * 2 * 2048 * 4096 * 2
    assert (told.kind, told.bytes) == ("all-reduce", 16 * 2048 * 4096 * (2 + 4))
    assert dealt.kind == "collective-permute"
    assert dealt.bytes == pytest.approx(2 * layers / 4 * 4, rel=1e-4)
    once = plan(*how, microbatches=8)
    assert once.schedule.bubble == 3 / 11
    assert once.compute_seconds > found.compute_seconds
    assert found.memory.temporaries > once.memory.temporaries + 2 * layers / 4 * 4 * 0.8
    lora, again = (plan(*how, microbatches=8, lora=Lora(), rounds=n) for n in (1, 2))
    assert again.memory.temporaries > lora.memory.temporaries + 2 * layers / 4 * 2 * 0.8
    with pytest.raises(ValueError, match="rounds=3 do not divide the 8 layer"):
        plan(*how, rounds=3)


def test_decoding_is_advised_to_keep_weights_where_they_are():
    """By what search ranks by, too."""
    gathered, stays = (
        plan("qwen3-0.6b", "v5e:2x2", mesh, "decode", 16, 4096) for mesh in ("fsdp=4", "tensor=4")
    )
    assert "gather weights over fsdp, for every token anew" in gathered.advice
    assert stays.advice is None
    assert stays.tokens_per_second > 2 * gathered.tokens_per_second


def test_every_chip_has_a_source_and_a_sane_balance():
    for chip in CHIPS.values():
        assert chip.source.startswith("https://")
        assert 100 < chip.flops / chip.hbm < 700
        assert chip.link < chip.hbm


def test_search_ranks_what_fits_by_speed():
    found = search(
        zoo.config("qwen3-8b"), Workload("train", 64, 2048), parse("v5e:4x4"), compile_best=0
    )
    fitting = [p for p in found if p.fits]
    assert fitting
    assert found[: len(fitting)] == fitting
    speeds = [p.tokens_per_second for p in fitting]
    assert speeds == sorted(speeds, reverse=True)
    assert len({tuple(p.mesh.values()) for p in found}) == len(found) > 5
    assert {p.mesh["stage"] for p in found} >= {1, 2, 4}
    assert {p.mesh["context"] for p in found} == {1}
    assert "data=15,fsdp=1,expert=1,tensor=1,context=1,stage=1" in meshes(
        zoo.config("qwen3-8b"), 15
    )


def test_search_shares_long_rows():
    """Eight rows for sixteen chips: each is shared by two at least, or heads are."""
    cfg, work = zoo.config("llama-3.1-8b"), Workload("train", 8, 32768)
    found = search(cfg, work, parse("v5p:2x2x4"), compile_best=0)
    assert {p.mesh["context"] for p in found} == {1, 2, 4, 8}
    assert not any(p.mesh["context"] > 1 and p.mesh["stage"] > 1 for p in found)
    assert all(p.mesh["context"] * p.mesh["tensor"] * p.mesh["stage"] > 1 for p in found)
    assert found[0].fits
    many = sum(1 for _ in meshes(zoo.config("deepseek-v3"), 1024, 131072))
    assert many < 1000  # each a few hundredths of a second


def test_rows_that_devices_share_by_hand():
    """32 layers of 8 heads of keys and values, 128 wide: around twice forward, once backward with
    gradients in float32; those of weights are summed over all that see other tokens."""
    found = plan("llama-3.1-8b", "v5p:2x2x2", "fsdp=2,context=4", "train", 2, 32768)
    alone = [one for one in found.collectives if one.axes == ("context",)]
    (passed,) = (one for one in alone if one.kind == "collective-permute")
    (summed,) = (one for one in alone if one.kind == "all-reduce" and one.calls == 32)
    assert passed.bytes == 32 * 4 * (32768 // 4) * 2 * 8 * 128 * (2 + 2 + 2 + 4)
    layers = size(zoo.config("llama-3.1-8b")).parameters - 2 * 128256 * 4096
    assert summed.bytes == pytest.approx(layers / 2 * 2, rel=1e-3)


def test_a_cache_is_whole_on_devices_that_would_share_rows():
    """As `docs/context.md` says; they all do the same."""
    for mode in ("prefill", "decode"):
        alone = plan("qwen3-0.6b", "v5e:1", "", mode, 4, 2048)
        found = plan("qwen3-0.6b", "v5e:2x2", "context=4", mode, 4, 2048)
        assert found.memory.total == alone.memory.total
        assert found.lost == 3 * found.model_flops
        assert found.seconds == pytest.approx(alone.seconds)


def test_what_the_compiler_finds_too_large_is_ranked_with_the_rest():
    small, large, slow = (
        plan("qwen3-0.6b", "v5e:1", "", "train", rows, 2048) for rows in (4, 512, 1)
    )
    assert [small.fits, large.fits, slow.fits] == [True, False, True]
    assert _ordered([large, slow], [small]) == [slow, small, large]


def test_workload_refuses():
    for wrong, says in (({"batch": 0}, "batch=0"), ({"accumulate": 3}, "accumulate=3 must divide")):
        with pytest.raises(ValueError, match=says):
            Workload(**{"mode": "train", "batch": 4, "length": 8} | wrong)


def test_topologies_say_their_size():
    assert parse("tpu7x:2x2x1").devices == 8
    assert parse("v5e").chips == 1
    assert isinstance(zoo.config("qwen3-0.6b"), Config)
    for text in ("v5p:8x8x16", "3xv5e:4x4"):
        assert str(hardware.parse(text)) == text
