"""Tiny models and packed batches that the training tests share."""

import jax
import numpy as np
import pytest

import zoo

VOCAB = 97


def attention():
    rope = zoo.Rope(8)
    return zoo.Attention(heads=2, kv_heads=1, head_dim=8, rope=rope)


def moe(**kwargs):
    kwargs = dict(score="sigmoid", select_bias=True, shared=zoo.MLP(16)) | kwargs
    return zoo.MoE(experts=4, top_k=2, hidden=16, **kwargs)


def config(*ffns, tie=False):
    stacks = tuple(zoo.Stack(2, (zoo.Layer(attention(), ffn),)) for ffn in ffns)
    return zoo.Config(VOCAB, 16, stacks, tie_embeddings=tie, max_length=64)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where the runs of all files find their data prepared."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def dense():
    return zoo.Decoder(config(zoo.MLP(32)))


@pytest.fixture(scope="session")
def sparse():
    return zoo.Decoder(config(zoo.MLP(32), moe()))


def pack(rows, length):
    """Batch of the documents in each row, padded to `length`, as `zoo.data` makes it."""
    batch = {
        name: np.full((len(rows), length), fill, np.int32)
        for name, fill in (("tokens", 0), ("targets", -1), ("segment_ids", 0), ("positions", 0))
    }
    for i, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents, 1):
            at = slice(start, start + len(document))
            batch["tokens"][i, at] = document
            batch["targets"][i, at] = [*document[1:], -1]
            batch["segment_ids"][i, at] = number
            batch["positions"][i, at] = np.arange(len(document))
            start += len(document)
    return batch


@pytest.fixture(scope="session")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(1, VOCAB, n).tolist() for n in (12, 20, 7, 9, 16, 5, 32, 11)]


@pytest.fixture(scope="session")
def batch(documents):
    a, b, c, d, e, f, g, h = documents
    return pack([[a, b], [c, d, e], [f, h], [g]], 32)


@pytest.fixture
def params(sparse):
    return sparse.init(jax.random.key(0), np.zeros((1, 2), np.int32))
