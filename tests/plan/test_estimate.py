"""Arithmetic against programs that TPU's compiler made, whose figures stand in the tests."""

import dataclasses

import pytest

import zoo
from zoo.config import Config
from zoo.plan import Workload, make_plan, parse
from zoo.training.settings import Lora


def _layers(mixer, hidden, width):
    layer = zoo.Layer(mixer, zoo.MLP(hidden))
    return Config(8192, width, (zoo.Stack(8, (layer,)),))


NARROW = _layers(zoo.Attention(8, 4, 64, zoo.Rope(64)), 2048, 512)
WIDE = _layers(zoo.Attention(32, 8, 128, zoo.Rope(128)), 14336, 4096)
LATENT = _layers(zoo.MLA(8, 256, 128, 64, 32, 64, zoo.Rope(32)), 2048, 512)
MIDDLE = _layers(zoo.Attention(16, 8, 128, zoo.Rope(128)), 6144, 2048)


@pytest.mark.parametrize(
    ("mode", "temporaries"),
    [
        (dict(mode="train", microbatches=8), 783.0),
        (dict(mode="train", microbatches=8, rounds=2), 698.3),
        (dict(mode="train", microbatches=8, rounds=2, lora=Lora()), 693.6),
        (dict(mode="decode"), 91.7),
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


@pytest.mark.parametrize(
    ("cfg", "length", "topology", "mesh", "temporaries", "moved"),
    [
        (NARROW, 8192, "v5e:2x2", "context=4", 457.0, (681.9, 96.5, 0, 0, 0)),
        (NARROW, 8192, "v5e:2x2", "fsdp=2,context=2", 284.5, (341.3, 48.2, 144.7, 79.7, 8.4)),
        (
            MIDDLE, 32768, "v5e:2x4", "fsdp=2,context=4", 3383.5,
            (5442.2, 469.8, 1812.0, 888.7, 67.1),
        ),
    ],
)  # fmt: skip
def test_devices_that_share_rows_do_what_compiled_programs_do(
    cfg, length, topology, mesh, temporaries, moved
):
    """MB per device of two rows by libtpu 0.0.42.1, which takes minutes of a core each."""
    cfg = dataclasses.replace(cfg, max_length=length)
    work = Workload("train", 2, length)
    found = make_plan(cfg, work, parse(topology), mesh, compile=False)
    assert found.memory.temporaries / 1e6 == pytest.approx(temporaries, rel=0.25)
    kinds = [
        ("collective-permute", "context"), ("all-reduce", "context"), ("all-gather", "fsdp"),
        ("reduce-scatter", "fsdp"), ("all-to-all", "fsdp"),
    ]  # fmt: skip
    total = dict.fromkeys(kinds, 0.0)
    for one in found.collectives:
        total[one.kind, " ".join(one.axes)] += one.bytes / 1e6
    assert total == pytest.approx(dict(zip(kinds, moved, strict=True)), rel=0.1)


def test_rounded_weights_are_gathered_as_compiled_programs_do():
    """27 MB per device of eight: for 8 layers the last maps of attention and of the MLP, 1.3 M in
    all, as codes of half a byte forward, the first of them once more, and backward as bfloat16."""
    work = Workload("train", 8, 256, lora=Lora(base="int4"))
    found = make_plan(NARROW, work, parse("v5e:2x4"), "fsdp=8", compile=False)
    layers, head = (one for one in found.collectives if one.kind == "all-gather")
    assert layers.bytes / 1e6 == pytest.approx(5.2 + 1.0 + 21.0, rel=0.1)
    assert head.bytes == 2 * 8192 * 512 * 2
