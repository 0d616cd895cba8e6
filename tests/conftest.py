"""Shared by all tests: eight simulated devices, a compilation cache, and small configs."""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
from pathlib import Path

_CACHE = Path(tempfile.gettempdir()) / f"zoo-test-cache-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
_DEVICES = ("nvidia[0-9]*", "accel*", "vfio/*")
if not any(any(Path("/dev").glob(name)) for name in _DEVICES):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or libtpu says at length that it has no TPU

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests import examples

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", params=list(examples.CONFIGS))
def cfg(request) -> zoo.Config:
    """One small config of each kind."""
    return examples.CONFIGS[request.param]


@pytest.fixture(scope="session")
def made(cfg) -> tuple[zoo.Decoder, dict, jax.Array]:
    """A float32 model of `cfg`, random parameters, and tokens i32[2, 24]."""
    model = zoo.Decoder(cfg)
    tokens = jax.random.randint(jax.random.key(7), (2, 24), 0, cfg.vocab_size)
    return model, examples.random_params(model), tokens


@pytest.fixture
def rng() -> np.random.Generator:
    """Numbers that are the same in every run."""
    return np.random.default_rng(0)


MOST_MAPS = 20_000
"""Regions of memory that a process may have before it lets its compiled programs go."""

_finished = itertools.count(1)


def pytest_runtest_logfinish() -> None:
    """XLA maps memory for every program that it compiles, and dies at Linux's 65 530 maps."""
    maps = Path("/proc/self/maps")
    if next(_finished) % 20 == 0 and maps.exists():
        with maps.open("rb") as lines:
            many = sum(1 for _ in lines) > MOST_MAPS
        if many:
            jax.clear_caches()
            gc.collect()


def pytest_report_header() -> str:
    """Says what the figures of a run belong to."""
    return f"jax {jax.__version__}, {jax.default_backend()}, {jnp.zeros(()).dtype}"
