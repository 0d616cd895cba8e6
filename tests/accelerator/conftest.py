"""These tests need a GPU or TPU that JAX sees; without one they are skipped, and say so.

    JAX_PLATFORMS=cuda,cpu python -m pytest -n 0 tests/accelerator

Both platforms are named, because answers are compared with the CPU's. `tests/conftest.py` asks for
eight simulated CPU devices, of which the first is used.
"""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(scope="session")
def accelerator() -> jax.Device:
    """The first device that is no CPU."""
    return jax.devices()[0]


@pytest.fixture(scope="session")
def cpu() -> jax.Device:
    return jax.devices("cpu")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if jax.default_backend() != "cpu":
        return
    reason = "no GPU or TPU: jax.default_backend() is 'cpu'"
    for item in items:
        if "tests/accelerator/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=reason))
