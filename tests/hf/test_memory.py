"""Loading needs memory for the parameters and for little else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from zoo import models
from zoo.config import MLP, Attention, Config, Layer, Rope, Stack
from zoo.hf.safetensors import Spec, layout, write
from zoo.hf.save import _json
from zoo.hf.table import expand

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
jax.block_until_ready(load(sys.argv[1]).params)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_peak_is_the_folder_and_its_largest_tensor(tmp_path):
    layer = Layer(Attention(8, 8, 64, Rope(64)), MLP(2048))
    cfg = Config(8000, 512, (Stack(16, (layer,)),))
    tensors = expand(cfg, models.family(cfg.family).table)
    kind = np.dtype(ml_dtypes.bfloat16)
    specs = layout(Spec(name, kind, t.shape) for name, t in tensors.items())
    write(tmp_path / "model.safetensors", specs, (np.ones(s.shape, kind) for s in specs))
    (tmp_path / "config.json").write_bytes(_json(models.config_to_hf(cfg)))
    folder, largest = sum(s.nbytes for s in specs), max(s.nbytes for s in specs)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr
    assert folder > 100e6
    assert int(found.stdout) < folder + largest + 20e6  # code, tables, threads
