"""One program of every family, lowered for GPU and TPU from one trace: nothing needs a device."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import zoo
from tests.hf.cases import GOLDEN
from tests.test_grouped import gpu_to_lower_for
from zoo.describe import shapes
from zoo.models import config_from_hf

FOLDER = Path(__file__).parent / "golden"


def one_per_family() -> list[str]:
    found: dict[str, str] = {}
    for name in GOLDEN:
        found.setdefault(config_from_hf(FOLDER / name).family, name)
    return list(found.values())


@pytest.mark.parametrize("name", one_per_family())
def test_lowers_for_gpu_and_tpu(name):
    cfg = config_from_hf(FOLDER / name)
    model = zoo.Decoder(cfg, dtype=jnp.bfloat16)
    inputs = shapes(cfg), jax.ShapeDtypeStruct((1, 16), jnp.int32)

    def program():
        return jax.jit(lambda params, tokens: model.apply(params, tokens).logits).trace(*inputs)

    tpu = program().lower(lowering_platforms=("tpu",)).as_text()
    with gpu_to_lower_for():
        gpu = program().lower(lowering_platforms=("cuda",)).as_text()
    experts = any(isinstance(layer.ffn, zoo.MoE) for layer in cfg.layers)
    assert ("tpu_custom_call" in tpu) == experts
    assert ("triton" in gpu) == experts
