"""Presets against what their authors publish."""

from __future__ import annotations

import pytest

from zoo import models
from zoo.hf.layout import count

# Parameters in billions: all, and those that a token uses. From the models' papers and cards:
# Llama 2 arXiv:2307.09288 and the safetensors sizes of its repos, Llama 3 arXiv:2407.21783 table 3
# and its cards (8.03B, 70.6B, 1.23B, 3.21B), Yi arXiv:2403.04652, SmolLM2-135M's card,
# Qwen3 arXiv:2505.09388 tables 1 and 2, Qwen3-Coder's card, DeepSeek-V3 arXiv:2412.19437 (671B,
# 37B), Kimi K2 arXiv:2507.20534.
PUBLISHED = {
    "llama-2-7b": (6.74, None),
    "llama-2-13b": (13.02, None),
    "llama-2-70b": (68.98, None),
    "llama-3.1-8b": (8.03, None),
    "llama-3.1-70b": (70.6, None),
    "llama-3.1-405b": (405.9, None),
    "llama-3.2-1b": (1.24, None),
    "llama-3.2-3b": (3.21, None),
    "llama-3.3-70b": (70.6, None),
    "deepseek-r1-distill-llama-8b": (8.03, None),
    "deepseek-r1-distill-llama-70b": (70.6, None),
    "smollm2-135m": (0.1345, None),
    "yi-6b": (6.06, None),
    "yi-9b": (8.83, None),
    "yi-34b": (34.4, None),
    "qwen3-0.6b": (0.6, None),
    "qwen3-1.7b": (1.7, None),
    "qwen3-4b": (4.0, None),
    "qwen3-8b": (8.2, None),
    "qwen3-14b": (14.8, None),
    "qwen3-32b": (32.8, None),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235, 22),
    "qwen3-coder-480b-a35b": (480, 35),
    "deepseek-v3": (671, 37),
    "deepseek-r1": (671, 37),
    "deepseek-v3.1": (671, 37),
    "kimi-k2": (1000, 32),
}


def test_every_preset_is_checked():
    assert set(PUBLISHED) == set(models.presets())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    cfg, (total, active) = models.config(name), PUBLISHED[name]
    assert count(cfg) / 1e9 == pytest.approx(total, rel=0.03)
    if active is not None:
        assert count(cfg, active=True) / 1e9 == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize("name", PUBLISHED)
def test_config_round_trip(name):
    cfg = models.config(name)
    assert models.config_from_hf(models.config_to_hf(cfg)) == cfg


def test_unknown_preset():
    with pytest.raises(ValueError, match="no preset 'gpt-9'; known are llama-2-7b"):
        models.config("gpt-9")
