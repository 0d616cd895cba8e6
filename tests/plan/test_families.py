"""The tiny model of every family compiled for a v5e chip: training, and decoding against a cache.

A quarter of an hour of a core, so marked `full`. As a script it prints the table of docs/plan.md:

    python -m pytest -n 0 -m full tests/plan/test_families.py
    python -m tests.plan.test_families [NAME of tests/golden ...]
"""

import importlib.metadata
import sys

import pytest

import zoo
from tests.test_lowering import FOLDER, one_per_family
from zoo.config import Config
from zoo.models import config_from_hf
from zoo.plan import Plan, Workload, compiled, make_plan, parse

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not compiled.available(), reason="needs libtpu, the extra `plan`"),
]

BATCH, LENGTH = 2, 32


def plan(cfg: Config, mode: str) -> Plan:
    return make_plan(cfg, Workload(mode, BATCH, LENGTH), parse("v5e:1"), "")


def routed(cfg: Config) -> int:
    """Layers with experts, those of multi-token prediction aside."""
    return sum(isinstance(layer.ffn, zoo.MoE) for layer in cfg.layers)


@pytest.mark.parametrize("mode", ["train", "decode"])
@pytest.mark.parametrize("name", one_per_family())
def test_compiles(name, mode):
    """With a grouped product of TPU's own for each of the three matrices of an expert."""
    cfg = config_from_hf(FOLDER / name)
    found = plan(cfg, mode)
    assert found.how.startswith("compiled by libtpu")
    assert found.fits
    assert found.kernels.get("gmm", 0) >= 3 * routed(cfg)
    if mode == "decode":
        assert found.memory.temporaries < 64 * 2**20


def main(names: list[str]) -> None:
    """Prints a row per family as soon as it is compiled."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print("| family | training: MiB, kernel calls | decoding: MiB, kernel calls | seconds |")
    print("|---|---|---|---|")
    for name in names:
        cfg = config_from_hf(FOLDER / name)
        plans = [plan(cfg, mode) for mode in ("train", "decode")]
        cells = [f"{p.memory.total / 2**20:.1f}, {sum(p.kernels.values())}" for p in plans]
        seconds = sum(float(p.how.split(" in ")[1].split(" s")[0]) for p in plans)
        print(f"| {cfg.family} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or one_per_family())
