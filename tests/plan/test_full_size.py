"""Presets of full size compiled for slices that people rent; minutes each, so marked `full`.

python -m pytest -n 0 -m full tests/plan/test_full_size.py
"""

import pytest

import zoo
from zoo.plan import Workload, compiled, make_plan, parse
from zoo.training.settings import Lora

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not compiled.available(), reason="needs libtpu, the extra `plan`"),
]


@pytest.mark.parametrize(
    ("name", "topology", "mesh", "mode", "batch", "length", "fits"),
    [
        ("qwen3-0.6b", "v5e:1", "", "train", 4, 2048, True),
        ("qwen3-0.6b", "v5e:1", "", "lora", 8, 2048, True),
        ("qwen3-8b", "v5e:1", "", "int4", 1, 2048, True),
        ("qwen3-0.6b", "v5e:1", "", "prefill", 8, 2048, True),
        ("qwen3-0.6b", "v6e:1", "", "decode", 32, 4096, True),
        ("qwen3-8b", "v5e:1", "", "decode", 8, 4096, False),
        ("qwen3-8b", "v5e:2x2", "tensor=4", "decode", 16, 4096, True),
        ("llama-3.1-8b", "v5e:4x4", "fsdp=16", "train", 16, 2048, True),
        ("llama-3.1-8b", "v6e:2x2", "tensor=4", "prefill", 4, 4096, True),
        ("llama-3.1-70b", "v5p:2x2x1", "tensor=4", "decode", 32, 4096, True),
        ("kimi-k2", "v6e:16x16", "fsdp=8,expert=32", "decode", 512, 8192, True),
        ("llama-3.1-70b", "tpu7x:2x2x1", "tensor=8", "decode", 64, 8192, True),
    ],
)
def test_compiles(name, topology, mesh, mode, batch, length, fits):
    spec = {"lora": Lora(), "int4": Lora(base="int4")}.get(mode)
    work = Workload("train" if spec else mode, batch, length, lora=spec)
    found = make_plan(zoo.config(name), work, parse(topology), mesh)
    assert found.how.startswith("compiled by libtpu")
    assert found.fits == fits
    guess = make_plan(zoo.config(name), work, parse(topology), mesh, compile=False)
    assert guess.fits == fits
    assert guess.memory.total == pytest.approx(found.memory.total, rel=0.35)
