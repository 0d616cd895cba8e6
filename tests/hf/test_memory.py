"""Loading needs memory for the parameters and for little else."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from zoo import models
from zoo.config import MLP, Attention, Config, Layer, Rope, Stack
from zoo.hf.quantization import read
from zoo.hf.safetensors import Spec, layout, write
from zoo.hf.source import json_bytes
from zoo.hf.table import expand

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
LOAD = """
import pathlib, sys
import jax
jax.device_put(1.0).block_until_ready()
from zoo.hf.load import load

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

pathlib.Path("/proc/self/clear_refs").write_text("5")
before = peak()
options = dict(option.split("=") for option in sys.argv[2:])
jax.block_until_ready(load(sys.argv[1], **options).params)
print(peak() - before)
"""


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc"
)
KIND = np.dtype(ml_dtypes.bfloat16)
SLACK = 20e6  # code, tables, threads


def peak(folder: Path, *options: str) -> int:
    """Bytes that loading a folder adds at most, with options "name=value"."""
    found = subprocess.run(
        [sys.executable, "-c", LOAD, folder, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


@pytest.fixture
def model():
    """The config.json and the tensors of a model of 68 million parameters."""
    layer = Layer(Attention(8, 8, 64, Rope(64)), MLP(2048))
    cfg = Config(8000, 512, (Stack(16, (layer,)),))
    return models.config_to_hf(cfg), expand(cfg, models.family(cfg.family).table)


def write_folder(folder: Path, hf: dict, specs: list[Spec]) -> None:
    specs = layout(specs)
    write(folder / "model.safetensors", specs, (np.ones(s.shape, s.dtype) for s in specs))
    (folder / "config.json").write_bytes(json_bytes(hf))


def test_peak_is_the_folder_and_its_largest_tensor(tmp_path, model):
    hf, tensors = model
    specs = [Spec(name, KIND, t.shape) for name, t in tensors.items()]
    write_folder(tmp_path, hf, specs)
    size, largest = sum(s.nbytes for s in specs), max(s.nbytes for s in specs)
    assert size > 100e6
    assert peak(tmp_path) < size + largest + SLACK


def test_peak_of_rounding_is_the_result_and_a_few_matrices(tmp_path, model):
    hf, tensors = model
    specs = [Spec(name, KIND, t.shape) for name, t in tensors.items()]
    write_folder(tmp_path, hf, specs)
    linear = sum(s.nbytes for s in specs if s.name.endswith("_proj.weight"))
    largest = max(s.nbytes for s in specs)
    rest = sum(s.nbytes for s in specs) - linear
    assert peak(tmp_path, "quantize=int8") < linear / 2 + rest + 4 * largest + SLACK
    assert linear / 2 + 4 * largest < 0.8 * linear


def test_peak_of_dequantising_is_the_result_and_its_largest_tensor(tmp_path, model):
    hf, tensors = model
    method = read(hf | {"quantization_config": FP8})
    specs, size, largest = [], 0, 0
    for name, tensor in tensors.items():
        size += math.prod(tensor.shape) * KIND.itemsize
        largest = max(largest, math.prod(tensor.shape) * KIND.itemsize)
        stored = method(tensor) if name.endswith("_proj.weight") else None
        if stored is None:
            specs.append(Spec(name, KIND, tensor.shape))
            continue
        codes, scales = stored.codes, stored.scales
        specs.append(Spec(codes.name, codes.kinds[0], codes.shape))
        specs.append(Spec(scales.name, np.dtype(np.float32), scales.shape))
    write_folder(tmp_path, hf | {"quantization_config": FP8}, specs)
    kept = sum(s.nbytes for s in specs)
    assert kept < 0.6 * size
    assert peak(tmp_path) < kept + largest + SLACK
    assert peak(tmp_path, "dtype=bfloat16") < size + largest + SLACK
