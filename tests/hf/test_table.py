"""Weight tables: every parameter has one place on disk, and every place one parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests import examples
from zoo import models
from zoo.hf.layout import count, shapes
from zoo.hf.load import flatten
from zoo.hf.table import (
    Depthwise,
    Flat,
    Interleave,
    Linear,
    PerHead,
    Row,
    Rows,
    Same,
    Shaped,
    Split,
    expand,
)

OPS = [
    (Same(), ((3, 5),), (3, 5)),
    (Flat(), ((3, 5),), (15,)),
    (Linear(), ((4, 3, 5),), (15, 4)),
    (Linear(ins=2), ((3, 5, 4),), (4, 15)),
    (Split(-1, Linear()), ((4, 3, 5), (4, 3, 2)), (21, 4)),
    (Split(-1, Linear()), ((4, 5), (4, 2)), (7, 4)),
    (Split(0, Flat()), ((5,), (2,)), (7,)),
    (Split(0, Linear()), ((5, 4), (2, 4)), (4, 7)),
    (Linear(lead=1), ((3, 4, 2, 5),), (3, 10, 4)),
    (Split(-1, Linear(lead=1)), ((3, 4, 5), (3, 4, 2)), (3, 7, 4)),
    (Interleave(Same()), ((3, 4, 5), (3, 4, 5)), (3, 4, 10)),
    (Shaped((1, None)), ((5,),), (1, 5)),
    (Depthwise(), ((4, 3, 5),), (15, 1, 4)),
    (Rows(Linear()), ((4, 3, 5), (4, 2, 3, 7)), (15 + 42, 4)),
    (Rows(Depthwise()), ((4, 3, 5), (4, 2, 3, 7)), (15 + 42, 1, 4)),
    (PerHead(), ((4, 2, 5), (4, 2, 3, 7), (4, 2, 3)), (2 * (5 + 21 + 3), 4)),
]


@pytest.mark.parametrize(("op", "params", "disk"), OPS)
def test_ops_are_bijections(op, params, disk):
    assert op.disk(params) == disk
    tensor = np.arange(np.prod(disk)).reshape(disk)
    views = op.views(tensor, params)
    assert tuple(v.shape for v in views) == params
    assert all(np.shares_memory(v, tensor) for v in views)
    seen = np.concatenate([v.ravel() for v in views])
    np.testing.assert_array_equal(np.sort(seen), tensor.ravel())


def test_linear_is_the_transpose():
    tensor = np.arange(6 * 4).reshape(6, 4)  # out = 2 heads of 3, in = 4
    (view,) = Linear().views(tensor, ((4, 2, 3),))
    assert view[1, 1, 2] == tensor[1 * 3 + 2, 1]


def test_split_is_per_head():
    tensor = np.arange(10 * 4).reshape(10, 4)  # two heads of 3 + 2, rank 4
    keys, values = Split(-1, Linear()).views(tensor, ((4, 2, 3), (4, 2, 2)))
    assert keys[0, 1, 0] == tensor[5, 0]
    assert values[0, 1, 0] == tensor[8, 0]


def test_per_head_has_all_of_a_head_together():
    tensor = np.arange(2 * (3 + 4) * 5).reshape(14, 5)  # two heads of 3 + 2 * 2, input 5
    q, v = PerHead().views(tensor, ((5, 2, 3), (5, 2, 2, 2)))
    assert q[1, 1, 2] == tensor[7 + 2, 1]
    assert v[1, 1, 1, 0] == tensor[7 + 3 + 2, 1]


def test_rows_follow_one_another():
    tensor = np.arange((6 + 4) * 5).reshape(10, 5)
    q, v = Rows(Linear()).views(tensor, ((5, 2, 3), (5, 4)))
    assert q[1, 1, 2] == tensor[5, 1]
    assert v[1, 3] == tensor[6 + 3, 1]


@pytest.mark.parametrize("cfg", list(examples.CONFIGS.values()))
def test_layout_is_the_decoders(cfg):
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    made = jax.eval_shape(zoo.Decoder(cfg).init, jax.random.key(0), tokens)
    assert {path: leaf.shape for path, leaf in flatten(made["params"]).items()} == shapes(cfg)


@pytest.mark.parametrize("name", models.presets())
def test_every_preset_has_a_place_for_every_parameter(name):
    cfg = models.config(name)
    tensors = expand(cfg, models.family(cfg.family).table)
    wanted = shapes(cfg)
    held = dict.fromkeys(wanted, 0)
    for tensor in tensors.values():
        assert np.prod(tensor.shape) == sum(int(np.prod(p.shape)) for p in tensor.parts)
        for part in tensor.parts:
            assert wanted[part.path][len(part.at) :] == part.shape
            held[part.path] += int(np.prod(part.shape))
    assert held == {path: int(np.prod(shape)) for path, shape in wanted.items()}
    assert sum(n for path, n in held.items() if not path.startswith("mtp_")) == count(cfg)


def test_interleaved_parameters_take_turns():
    tensor = np.arange(12).reshape(2, 6)
    gate, up = Interleave(Same()).views(tensor, ((2, 3), (2, 3)))
    assert gate[1].tolist() == [6, 8, 10]
    assert up[1].tolist() == [7, 9, 11]


def test_alternatives_follow_the_names_that_are_there():
    cfg = models.config("qwen3-30b-a3b")
    layer = "model.layers.{l}.mlp.experts."
    fused = Row(layer + "gate_up", ("moe/gate/w", "moe/up/w"), Split(-1, Linear(lead=1)))
    table = (*models.family(cfg.family).table, fused)
    usual, other = "model.layers.3.mlp.experts.0.gate_proj.weight", fused.disk.format(l=3)
    for names in (None, (), {usual, other}):
        tensors = expand(cfg, table, names)
        assert usual in tensors
        assert other not in tensors
    tensors = expand(cfg, table, {other})
    assert tensors[other].shape == (128, 2 * 768, 2048)
    assert usual not in tensors
    assert usual.replace("3", "4", 1) in tensors  # each layer chooses


def test_alternatives_of_one_name_follow_the_shapes_that_are_there():
    """Qwen3-VL's experts are [in, out] as released, [out, in] as transformers 5 writes them."""
    cfg = models.config("qwen3-30b-a3b")
    table = models.storage(cfg, {"model_type": "qwen3_vl_moe"}).table
    name = "model.language_model.layers.3.mlp.experts.down_proj"
    for shape in ((128, 768, 2048), (128, 2048, 768)):
        assert expand(cfg, table, {name}, {name: shape})[name].shape == shape


def test_a_parameter_without_a_row_is_an_error():
    table = (Row("model.embed_tokens.weight", "embed/table", Same()),)
    with pytest.raises(ValueError, match="final_norm/scale"):
        expand(models.config("llama-2-7b"), table)
