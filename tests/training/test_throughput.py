from types import SimpleNamespace

import pytest

import zoo
from tests.training.conftest import config, moe
from zoo.hf.layout import count
from zoo.training.throughput import flops_per_token, peak_flops


def test_flops_by_hand():
    """Per layer: q 16*16, k and v 16*8, o 16*16; gated MLPs 3*16*F; norms; the head; attention."""
    attention, norms = 256 + 128 + 128 + 256, 2 * 16
    mlp = attention + norms + 3 * 16 * 32
    sparse = attention + norms + 16 * 4 + 4 + 3 * 16 * 16 * (2 + 1)
    scores = 4 * 64 * 2 * (8 + 8)
    total = 2 * mlp + 2 * sparse + 16 + 97 * 16 + scores
    assert flops_per_token(config(zoo.MLP(32), moe()), 64) == pytest.approx(6 * total)


def test_experts_that_are_not_chosen_are_free():
    small, large = (config(zoo.MLP(32), moe()), config(zoo.MLP(32), moe()))
    wide = zoo.MoE(experts=64, top_k=2, hidden=16, score="sigmoid", shared=zoo.MLP(16))
    large = config(zoo.MLP(32), wide)
    routers = 2 * (16 * 60 - 4)
    assert flops_per_token(large, 64) - flops_per_token(small, 64) == 6 * routers


def test_a_recurrence_costs_the_same_at_any_length():
    """3 products of a state of 8 x 10 per value head and token, and each weight once."""
    mixer = zoo.GatedDelta(2, 6, 8, 10)
    cfg = zoo.Config(97, 16, (zoo.Stack(2, (zoo.Layer(mixer, zoo.MLP(32)),)),), tie_embeddings=True)
    weights, states = count(cfg), 2 * 3 * 6 * 8 * 10
    assert flops_per_token(cfg, 64) == flops_per_token(cfg, 4096) == 6 * (weights + states)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", 65e12),
        ("cpu", None),
    ],
)
def test_peaks_by_kind(kind, peak):
    assert peak_flops(SimpleNamespace(device_kind=kind)) == peak
