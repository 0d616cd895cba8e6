"""Shared by all tests: eight simulated devices, a compilation cache, and small configs."""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_CACHE = Path(tempfile.gettempdir()) / f"zoo-test-cache-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for _name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # what is compared with plain text
    os.environ.pop(_name, None)
for _name in ("NO_PROXY", "no_proxy"):  # servers of this machine are asked directly
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1,localhost")))
_DEVICES = ("nvidia[0-9]*", "accel*", "vfio/*")
if not any(any(Path("/dev").glob(name)) for name in _DEVICES):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or libtpu says at length that it has no TPU

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests import examples
from tests.hf.cases import CASES

jax.config.update("jax_num_cpu_devices", 8)

_QUICK = jax.config.read("jax_disable_most_optimizations")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """Most tests compute little and compile much: machine code is optimised for those that ask.

    `JAX_DISABLE_MOST_OPTIMIZATIONS=0` in the environment optimises for all.
    """
    quick = _QUICK and item.get_closest_marker("optimised") is None
    jax.config.update("jax_disable_most_optimizations", quick)


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


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A file to write to, of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as file:
        yield file


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One worker runs the tests of a case, or of a file: what they share is made and compiled once.

    By names of tests, since pytest 9.2 does not look where xdist 3.8 notes a group. libtpu, which
    wants to be alone on a machine, is used by one file only, those marked `full` aside.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByCase(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            case = nodeid.rpartition("[")[2].rstrip("]").split("-")[0]
            known = case in examples.CONFIGS or case in CASES
            return case if known else nodeid.split("::")[0]

    return ByCase(config, log)


def pytest_report_header() -> str:
    """Says what the figures of a run belong to."""
    return f"jax {jax.__version__}, {jax.default_backend()}, {jnp.zeros(()).dtype}"
