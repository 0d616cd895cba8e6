"""A config is a value, and refuses what cannot be built, naming field and fix."""

import dataclasses

import pytest

from tests.examples import CONFIGS
from zoo.config import (
    MLA,
    MLP,
    Attention,
    Config,
    GatedDelta,
    Layer,
    Llama3Scaling,
    MoE,
    Norm,
    Rope,
    Stack,
    YarnScaling,
    stack_layers,
)

ROPE = Rope(16)
DENSE = Layer(Attention(4, 2, 16, ROPE), MLP(80))
MOE = Layer(Attention(4, 2, 16, ROPE), MoE(8, 2, 28))


def sharing(places: int, **fields) -> Layer:
    """A layer with the keys and values of the one so many places before it."""
    return Layer(dataclasses.replace(DENSE.mixer, share_kv=places, **fields), MLP(80))


def test_configs_are_values(cfg):
    assert cfg == dataclasses.replace(cfg)
    assert len({cfg, dataclasses.replace(cfg), dataclasses.replace(cfg, vocab_size=98)}) == 2


def test_layers_run_stack_by_stack_repeat_by_repeat():
    cfg = Config(97, 48, (Stack(2, (DENSE, MOE)), Stack(1, (MOE,))))
    assert cfg.layers == (DENSE, MOE, DENSE, MOE, MOE)


def test_ropes_are_distinct_and_skip_layers_without_positions():
    plain = Layer(Attention(4, 2, 16, None), MLP(80))
    assert Config(97, 48, (Stack(2, (DENSE, plain, MOE)),)).ropes == (ROPE,)
    assert len(CONFIGS["moe"].ropes) == 2


def test_stack_layers_groups_equal_neighbours():
    found = stack_layers((DENSE, MOE, MOE, DENSE))
    assert found == (Stack(1, (DENSE,)), Stack(2, (MOE,)), Stack(1, (DENSE,)))


def test_layers_that_share_keys_and_values_stay_in_one_pattern():
    near, far = sharing(1), sharing(2)
    found = stack_layers((MOE, DENSE, near, DENSE, near, DENSE, MOE, far, MOE))
    assert found == (
        Stack(1, (MOE,)), Stack(2, (DENSE, near)), Stack(1, (DENSE, MOE, far)), Stack(1, (MOE,))
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Attention(16, 3, 8, None), r"kv_heads=3 must divide heads=16"),
        (lambda: Attention(0, 1, 8, None), r"Attention.heads=0 must be a positive number"),
        (lambda: Attention("2", 1, 8, None), r"heads=.2. must be a positive number"),
        (lambda: Attention(2, 1, 8, Rope(16)), r"rope.dim=16 must not exceed head_dim=8"),
        (lambda: Attention(2, 1, 8, None, window=0), r"window=0 must be a positive number"),
        (lambda: GatedDelta(4, 6, 8, 8), r"k_heads=4 must divide v_heads=6"),
        (lambda: GatedDelta(2, 6, 8, 8, conv=1), r"GatedDelta.conv=1 must be at least 2"),
        (lambda: GatedDelta(2, 6, 8, 8, gate_act="tanh"), r"gate_act='tanh' must be one of silu"),
        (lambda: Rope(7), r"Rope.dim=7 must be even"),
        (lambda: Norm(eps=0.0), r"Norm.eps=0.0 must be a positive number"),
        (lambda: YarnScaling(0.0, 8), r"YarnScaling.factor=0.0 must be a positive number"),
        (lambda: Llama3Scaling(8.0, 5.0, 4.0, 16), r"high_freq_factor=4.0 must not be below"),
        (lambda: MLA(2, 8, 8, 8, 4, 8, Rope(8)), r"rope.dim=8 must equal rope_dim=4"),
        (lambda: MLP(8, act="swish"), r"act='swish' must be one of silu, gelu"),
        (lambda: MoE(8, 2, 8, score="top"), r"score='top' must be one of softmax, sigmoid"),
        (lambda: MoE(8, 9, 8), r"top_k=9 must not exceed the 8 experts"),
        (lambda: MoE(8, 2, 8, groups=3), r"groups=3 must divide experts=8"),
        (lambda: MoE(8, 2, 8, groups=4, top_groups=5), r"top_groups=5 must not exceed groups=4"),
        (lambda: MoE(8, 2, 8, groups=8, top_groups=2), r"needs at least two"),
        (lambda: MoE(8, 3, 8, groups=4, top_groups=1), r"top_k=3 must not exceed the 2 experts"),
        (lambda: Stack(0, (DENSE,)), r"Stack.repeats=0 must be a positive number"),
        (lambda: Stack(1, ()), r"Stack.layers=\(\) is empty"),
        (lambda: Stack(2, (DENSE, sharing(2))), r"layers\[1\].*share_kv=2 reaches before"),
        (lambda: Stack(1, (DENSE, sharing(1), sharing(1))), r"keys and values of its own"),
        (lambda: Stack(1, (DENSE, sharing(1, kv_heads=4))), r"its kv_heads=4 must be layer 0's, 2"),
        (lambda: Stack(1, (DENSE, sharing(1, rope=None))), r"its rope=None must be layer 0's"),
        (
            lambda: Config(97, 48, (Stack(1, (DENSE,)),), mtp=(sharing(1),)),
            r"Config.mtp.*keys and values of its own",
        ),
        (lambda: Config(97, 48, ()), r"Config.stacks=\(\) is empty"),
        (lambda: Config(-1, 48, (Stack(1, (DENSE,)),)), r"vocab_size=-1 must be a positive number"),
    ],
)
def test_refuses_what_cannot_be_built(make, says):
    with pytest.raises(ValueError, match=says):
        make()
