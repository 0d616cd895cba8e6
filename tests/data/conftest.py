"""The committed corpus, prepared once per worker."""

import dataclasses
from pathlib import Path

import pytest

from zoo.data import DataConfig, prepare
from zoo.data.sources import scan

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="session")
def corpus() -> Path:
    return CORPUS


@pytest.fixture(scope="session")
def config() -> DataConfig:
    return DataConfig(
        source="glob",
        files=(str(CORPUS / "**/*.*"),),
        validation_fraction=0.25,
        test_fraction=0.15,
        vocab_size=400,
        window=24,
        batch=4,
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def prepared(config, cache):
    return prepare(config, cache)


@pytest.fixture(scope="session")
def dataset(config, cache, prepared) -> Path:
    """The folder of the TFDS dataset that `prepared` was made from."""
    return cache / "corpora" / scan(config).key[:16] / "zoo_text/1.0.0"


@pytest.fixture(params=[1, 2, 7, 24, 1000])
def cut(request, prepared):
    """The prepared corpus in windows of several lengths, from one token to more than there are."""
    return dataclasses.replace(prepared, window=request.param)
