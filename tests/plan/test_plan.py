"""The planner: published cases, arithmetic that must hold, the command, and bad input."""

import dataclasses
import os
import typing
from pathlib import Path
from typing import get_args

import jax
import pytest
from ml_collections import ConfigDict

import zoo
from tests.training.tiny import get_config
from zoo import sharding
from zoo.cli import main
from zoo.config import Config
from zoo.describe import size
from zoo.plan import CHIPS, Workload, command, hardware, make_plan, parse
from zoo.plan.hlo import Collective, Counted
from zoo.plan.layout import Layout
from zoo.plan.planner import _collectives
from zoo.plan.search import _ordered, meshes, search
from zoo.plan.workload import Mode, Remat, program
from zoo.training.optimizer import make_optimizer
from zoo.training.run import find_config, load_params
from zoo.training.settings import Lora, from_config
from zoo.training.step import state_shardings
from zoo.training.throughput import flops_per_token

GiB = 2**30


def _layers(mixer, hidden, width):
    layer = zoo.Layer(mixer, zoo.MLP(hidden))
    return Config(8192, width, (zoo.Stack(8, (layer,)),))


NARROW = _layers(zoo.Attention(8, 4, 64, zoo.Rope(64)), 2048, 512)
WIDE = _layers(zoo.Attention(32, 8, 128, zoo.Rope(128)), 14336, 4096)
LATENT = _layers(zoo.MLA(8, 256, 128, 64, 32, 64, zoo.Rope(32)), 2048, 512)


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
    assert {one.kind for one in spread.collectives} == {"all-gather"}


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
    (embedding,) = (one for one in found.collectives if one.axes == ("data", "fsdp"))
    across = found.seconds_of(embedding) - 2 * embedding.bytes / 64 / 2 / slow
    less = sum(map(found.seconds_of, (*reduced, embedding))) - across
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
    assert {one.axes for one in found[1:]} == {("data",), ("data", "fsdp")}
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


@pytest.mark.parametrize(
    ("mode", "temporaries"),
    [
        (dict(mode="train", microbatches=8), 783.0),
        (dict(mode="train", microbatches=8, rounds=2), 698.3),
        (dict(mode="train", microbatches=8, rounds=2, lora=Lora()), 693.6),
        (dict(mode="decode"), 96.3),
    ],
)
def test_stages_need_what_compiled_programs_do(mode, temporaries):
    """MB per device as compiled for v5e:2x4 by libtpu 0.0.42.1: minutes of a core each."""
    spec = "stage=4,fsdp=2" if mode == dict(mode="train", microbatches=8) else "stage=4,data=2"
    work = Workload(batch=64, length=512, **mode)
    found = make_plan(NARROW, work, parse("v5e:2x4"), spec, compile=False)
    assert found.memory.temporaries / 1e6 == pytest.approx(temporaries, rel=0.25)
    if work.mode == "decode":  # every layer fetches the whole stack and its cache
        (one,) = found.collectives
        assert (one.kind, one.axes, one.calls) == ("all-gather", ("stage",), 8)
        assert one.bytes / 1e6 == pytest.approx(1577.2, rel=1e-3)
        assert "gather weights over stage" in found.advice


@pytest.mark.parametrize(
    ("cfg", "topology", "mesh", "rows", "length", "temporaries"),
    [
        (NARROW, "v5e:1", "", 16, 512, 18.7),
        (NARROW, "v5e:2x4", "data=8", 64, 512, 8.9),
        (NARROW, "v5e:2x4", "stage=4,data=2", 16, 512, 25.6),
        (LATENT, "v5e:1", "", 16, 512, 47.7),
        (WIDE, "v5e:1", "", 2, 2048, 146.0),
        (WIDE, "v5e:1", "", 8, 2048, 841.7),
    ],
)
def test_prefill_needs_what_compiled_programs_do(cfg, topology, mesh, rows, length, temporaries):
    """MB per device by libtpu 0.0.42.1: a layer's work, little of it where it stays on the chip."""
    work = Workload("prefill", rows, length)
    found = make_plan(cfg, work, parse(topology), mesh, compile=False)
    assert found.memory.temporaries / 1e6 == pytest.approx(temporaries, rel=0.25)


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


@pytest.mark.parametrize(
    ("mesh", "moved"),
    [
        (
            "context=4",
            {("collective-permute", "context"): 671.1, ("all-reduce", "context"): 96.5},
        ),
        (
            "fsdp=2,context=2",
            {
                ("collective-permute", "context"): 335.5, ("all-reduce", "context"): 39.8,
                ("all-gather", "fsdp"): 153.1, ("reduce-scatter", "fsdp"): 79.7,
                ("all-reduce", "fsdp context"): 16.8,
            },
        ),
    ],
)  # fmt: skip
def test_devices_that_share_rows_exchange_what_compiled_programs_do(mesh, moved):
    """MB per device of two rows of 8192 tokens on v5e:2x2 by libtpu 0.0.42.1; a minute of a core
    each. Memory of these and larger ones is in docs/plan.md."""
    cfg, work = dataclasses.replace(NARROW, max_length=8192), Workload("train", 2, 8192)
    found = make_plan(cfg, work, parse("v5e:2x2"), mesh, compile=False)
    total = dict.fromkeys(moved, 0.0)
    for one in found.collectives:
        total[one.kind, " ".join(one.axes)] += one.bytes / 1e6
    assert total == pytest.approx(moved, rel=0.1)


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


def test_command_prints_a_plan_and_draws_it(capsys, tmp_path, monkeypatch):
    for name in command.ALONE:  # as in a shell, and put back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    arguments = ["plan", "--config=configs/quickstart.py", "--topology=v5e:1", "--arithmetic"]
    assert main([*arguments, f"--plot={tmp_path}/plan.png", "--tokens=1e9"]) == 0
    out = capsys.readouterr().out
    for part in ("8 rows of 256 tokens", "fits: 1", "GiB left of 16.0 GiB", "chip-hours"):
        assert part in out
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert command.ALONE.items() <= os.environ.items()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["qwen3-0.6b", "--topology=v9:4"], "unknown chip 'v9'; known are v4"),
        (["qwen3-0.6b", "--topology=v5e-16"], "say v5e and its shape, as v5e:4x4; known are"),
        (["none/config.json", "--topology=v5e:1"], "none/config.json: there is no such folder"),
        (["qwen-3-0.6b", "--topology=v5e:1"], "no preset 'qwen-3-0.6b': near are qwen3-0.6b, "),
        (["qwen3-0.6b", "--topology=v5p:4x4"], "v5p has 3 axes, so a shape like v5p:4x4x4"),
        (["qwen3-0.6b", "--topology=v5e:axb"], "'axb' is no shape, as v5e:4x4 has one"),
        (["qwen3-0.6b", "--topology=2xh100:8"], "slices are of TPUs"),
        (["qwen3-0.6b", "--topology=v5e:4x4", "--mesh=fsdp=3"], "make the sizes multiply to 16"),
        (["qwen3-0.6b", "--topology=v5e:4x4", "--batch=10"], "10 rows does not divide over"),
        (["qwen3-0.6b", "--topology=v5e:1", "--length=99999999"], "beyond the model's max_length"),
        (["qwen3-0.6b", "--topology=v5e:1", "--rules=fdsp"], "did you mean 'fsdp'"),
        (
            ["qwen3-0.6b", "--topology=v5e:2x2", "--mesh=stage=4", "--batch=8", "--microbatches=3"],
            "microbatches=3 do not divide a batch of 8 rows: 2 or 4 would",
        ),
        (["qwen3-0.6b", "--topology=v5e:1", "--lora=0"], "lora.rank=0 must be positive"),
        (["qwen3-0.6b", "--topology=v5e:1", "--base=int4"], "--base=int4 is of adapters"),
        (["qwen3-0.6b", "--topology=v5e:1", "--lora=4", "--mode=decode"], "adapters are merged"),
        (["qwen3-0.6b", "--topology=h100:9999999999"], "over 9999999999 devices: JAX counts to"),
        (
            ["qwen3-0.6b", "--topology=v5e:4x4", "--mesh=tensor=16", "--rules=expert"],
            "mesh axis tensor=16 is in no rule",
        ),
        (
            ["qwen3-0.6b", "--topology=v5e:2x2", "--mesh=stage=2,context=2"],
            "stage=2, context=2: layers in stages cannot share rows",
        ),
        (
            ["qwen3-0.6b", "--topology=v5e:2x2", "--mesh=context=4", "--length=100"],
            "a row of 100 tokens does not divide by 8",
        ),
        (["qwen3-0.6b", "--topology=v5e:1", "--rounds=2"], "--rounds=2: of a training step on a"),
        (
            ["qwen3-0.6b", "--topology=v5e:1", "--mode=decode", "--batch=2", "--accumulate=2"],
            "accumulate=2 is of mode='train'",
        ),
        (["qwen3-0.6b", "--topology=v5e:1", "--tokens=inf"], "--tokens=inf is no budget"),
        (["qwen3-0.6b", "--topology=v5e:1", "--plot=a.jpg"], "--plot=a.jpg is no file to write a"),
        (["qwen3-0.6b", "--topology=v5e:1", "--search", "--mesh=data=1"], "--search tries all"),
        (["--topology=v5e:1"], "name a model, or a file"),
        (["--config=tests/examples.py", "--topology=v5e:1"], "examples.py has no get_config()"),
        (["--config=none.py", "--topology=v5e:1"], "none.py is no Python file"),
    ],
)
def test_command_refuses(arguments, says, capsys):
    assert main(["plan", *arguments, "--arithmetic"]) == 2
    assert says in capsys.readouterr().err


def test_a_model_stands_for_that_of_a_file(capsys):
    """Which fine-tuning has from elsewhere; adapters, batch and window are the file's."""
    file, preset = "--config=configs/lora.py", "smollm3-3b"
    assert main(["plan", preset, file, "--topology=v5p:1", "--arithmetic"]) == 0
    assert "by configs/lora.py · train LoRA of rank 16 ·" in capsys.readouterr().out
    assert main(["plan", preset, file, "--topology=v5p:1", "--arithmetic", "--base=int4"]) == 0
    assert "train LoRA of rank 16 on int4 ·" in capsys.readouterr().out
    decode = ["plan", preset, file, "--mode=decode", "--topology=v5p:1", "--arithmetic"]
    assert main(decode) == 0
    assert "decode · " in capsys.readouterr().out


def test_links_of_a_kind_are_one_row(capsys):
    """Whatever layers they are of: Qwen3-Next has four in a pattern, all with experts."""
    arguments = ["plan", "qwen3-next-80b-a3b", "--topology=v5p:2x2x1", "--mesh=expert=4"]
    assert main([*arguments, "--mode=prefill", "--batch=4", "--arithmetic"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "all-to-all" in line]
    assert len(rows) == 1
    assert "│ 96 " in rows[0]


def test_showing_a_mesh_leaves_accelerators_alone(monkeypatch, capsys):
    for name in command.ALONE:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert main(["show", "qwen3-0.6b", "--mesh=fsdp=4"]) == 0
    assert "4 devices: fsdp=4" in capsys.readouterr().out
    assert command.ALONE.items() <= os.environ.items()


def test_command_knows_what_workloads_know():
    assert get_args(Mode) == command.MODES
    assert get_args(Remat) == command.REMATS
    assert get_args(typing.get_type_hints(Lora)["base"]) == command.BASES


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
