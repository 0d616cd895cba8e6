import math

import jax
import numpy as np
import pytest

from tests.training.conftest import pack
from zoo.training.evaluate import evaluate, make_eval_step
from zoo.training.step import token_losses


@pytest.fixture(scope="module")
def eval_step(sparse):
    return make_eval_step(sparse)


def test_report_by_hand(sparse, params, batch, documents, eval_step):
    """Two batches, of which the second is nearly all padding: means are over targets."""
    short = pack([[documents[2]], [], [], []], 32)
    report = evaluate(eval_step, params, [batch, short], sparse.cfg, bytes_per_target=2.5)
    losses = jax.jit(lambda batch: token_losses(sparse, params, batch)[1])
    nll = sum(float(losses(b).sum()) for b in (batch, short))
    targets = sum(len(doc) - 1 for doc in documents) + len(documents[2]) - 1
    assert report.targets == targets
    assert report.loss == pytest.approx(nll / targets, rel=1e-5)
    assert report.perplexity == pytest.approx(math.exp(nll / targets), rel=1e-5)
    assert report.bits_per_byte == pytest.approx(nll / targets / math.log(2) / 2.5, rel=1e-5)
    assert report.tokens_per_second > 0


def test_expert_load_names_layers_and_averages_to_one(sparse, params, batch, eval_step):
    report = evaluate(eval_step, params, [batch], sparse.cfg)
    assert list(report.expert_load) == [2, 3]
    for row in report.expert_load.values():
        assert np.mean(row) == pytest.approx(1.0)
        assert len(set(row)) > 1
    assert report.bits_per_byte is None


def test_nothing_to_predict_is_an_error(sparse, params, eval_step):
    empty = pack([[], [], [], []], 32)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(eval_step, params, [empty], sparse.cfg)
