"""Presets against what their authors publish."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hf.cases import PUBLISHED
from zoo import models
from zoo.hf.layout import count


def test_every_preset_is_checked():
    assert set(PUBLISHED) == set(models.presets()) - set(models.sketches())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    cfg, (total, active) = models.config(name), PUBLISHED[name]
    assert count(cfg) / 1e9 == pytest.approx(total, rel=0.03)
    if active is not None:
        assert count(cfg, active=True) / 1e9 == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize("name", models.presets())
def test_config_round_trip(name):
    cfg = models.config(name)
    assert models.config_from_hf(models.config_to_hf(cfg)) == cfg


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"no preset 'llama-2-8b': near are .*llama-2-7b"):
        models.config("llama-2-8b")
    with pytest.raises(ValueError, match=r"no preset 'x': zoo.presets\(\) and `zoo list` have all"):
        models.config("x")


def test_families_are_small():
    """A family is one file of data, at most 150 lines of it (what families share is apart)."""
    shared = {"__init__", "family", "hybrid", "latent", "parts", "tables"}
    found = [path for path in Path(models.__file__).parent.glob("*.py") if path.stem not in shared]
    lines = {path.name: len(path.read_text().splitlines()) for path in found}
    assert {name: n for name, n in lines.items() if n > 150} == {}
