"""The planner: published cases, arithmetic that must hold, the command, and bad input."""

from typing import get_args

import pytest

import zoo
from zoo import sharding
from zoo.cli import main
from zoo.config import Config
from zoo.describe import size
from zoo.plan import CHIPS, Workload, command, estimate, hardware, make_plan, parse
from zoo.plan.hlo import Collective, Counted
from zoo.plan.planner import _collectives
from zoo.plan.search import _ordered, search
from zoo.plan.workload import Mode, Remat
from zoo.training.throughput import flops_per_token

GiB = 2**30


def plan(name, topology, mesh, mode, batch, length, **how):
    work = Workload(mode, batch, length, **how)
    return make_plan(zoo.config(name), work, parse(topology), mesh, compile=False)


@pytest.mark.parametrize(
    ("name", "topology", "mesh", "mode", "batch", "length", "fits"),
    [
        ("qwen3-0.6b", "v5e:1", "", "train", 4, 2048, True),
        ("qwen3-8b", "v5e:1", "", "train", 1, 2048, False),
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
    reduced = next(one for one in found.collectives if one.axes == ("data",))
    assert found.seconds_of(reduced) == pytest.approx(2 * reduced.bytes / 2 / slow)
    alone = plan("llama-3.1-8b", "v5p:4x4x4", "fsdp=64", "train", 64, 4096)
    assert found.link_seconds - found.seconds_of(reduced) == pytest.approx(alone.link_seconds)
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
    layout = estimate.Layout(cfg, work, sizes, sharding.find_rules(None))
    inside = Collective("all-gather", ("fsdp",), 4, 3, 5)
    counted = Counted(collectives=[inside, Collective("all-reduce", ("data",), 2, 1, 1)])
    found = _collectives(layout, counted, {"data": 2})
    assert found[0] == inside
    assert {one.axes for one in found[1:]} == {("data",)}
    assert sum(one.bytes for one in found[1:]) > 4 * size(cfg).parameters / 8
    assert _collectives(layout, counted, {}) == tuple(counted.collectives)


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


def test_what_the_compiler_finds_too_large_is_ranked_with_the_rest():
    small, large, slow = (
        plan("qwen3-0.6b", "v5e:1", "", "train", rows, 2048) for rows in (4, 512, 1)
    )
    assert [small.fits, large.fits, slow.fits] == [True, False, True]
    assert _ordered([large, slow], [small]) == [slow, small, large]


def test_command_prints_a_plan_and_draws_it(capsys, tmp_path):
    arguments = ["plan", "--config=configs/quickstart.py", "--topology=v5e:1", "--arithmetic"]
    assert main([*arguments, f"--plot={tmp_path}/plan.png", "--tokens=1e9"]) == 0
    out = capsys.readouterr().out
    for part in ("8 rows of 256 tokens", "fits: 1", "GiB left of 16.0 GiB", "chip-hours"):
        assert part in out
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["qwen3-0.6b", "--topology=v9:4"], "unknown chip 'v9'; known are v4"),
        (["qwen3-0.6b", "--topology=v5p:4x4"], "v5p has 3 axes, so a shape like v5p:4x4x4"),
        (["qwen3-0.6b", "--topology=v5e:axb"], "'axb' is no shape, as v5e:4x4 has one"),
        (["qwen3-0.6b", "--topology=2xh100:8"], "slices are of TPUs"),
        (["qwen3-0.6b", "--topology=v5e:4x4", "--mesh=fsdp=3"], "make the sizes multiply to 16"),
        (["qwen3-0.6b", "--topology=v5e:4x4", "--batch=10"], "10 rows does not divide over"),
        (["qwen3-0.6b", "--topology=v5e:1", "--length=99999999"], "beyond the model's max_length"),
        (["qwen3-0.6b", "--topology=v5e:1", "--rules=fdsp"], "did you mean 'fsdp'"),
        (["--topology=v5e:1"], "name a model, or a file"),
        (["--config=none.py", "--topology=v5e:1"], "none.py is no Python file"),
    ],
)
def test_command_refuses(arguments, says, capsys):
    assert main(["plan", *arguments, "--arithmetic"]) == 2
    assert says in capsys.readouterr().err


def test_command_knows_what_workloads_know():
    assert get_args(Mode) == command.MODES
    assert get_args(Remat) == command.REMATS


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
