"""Batches: the same whatever the number of processes, exact on resume, shuffled and complete."""

import json
from itertools import islice

import numpy as np
import pytest

from zoo.data import eval_batches, train_batches


def take(batches, count):
    return list(islice(batches, count))


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def join(parts):
    """Per-process lists of batches to global batches."""
    return [{k: np.concatenate([p[k] for p in group]) for k in group[0]} for group in zip(*parts)]  # noqa: B905


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_of_one(prepared, count):
    steps = 3 * len(prepared.windows("train")) // 8  # Three epochs.
    one = take(train_batches(prepared, 8, 5), steps)
    parts = [take(train_batches(prepared, 8, 5, p, count), steps) for p in range(count)]
    assert_same(join(parts), one)
    one = list(eval_batches(prepared, "validation", 8))
    parts = [list(eval_batches(prepared, "validation", 8, p, count)) for p in range(count)]
    assert_same(join(parts), one)


def test_the_seed_alone_decides_the_order(prepared):
    first = take(train_batches(prepared, 4, seed=1), 6)
    assert_same(take(train_batches(prepared, 4, seed=1), 6), first)
    other = take(train_batches(prepared, 4, seed=2), 6)
    assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(first, other, strict=True))


def test_an_epoch_sees_every_window_once_and_the_next_in_another_order(prepared):
    windows = prepared.windows("train")
    every = windows.batch(range(len(windows)))["tokens"]
    batches = train_batches(prepared, 1, seed=0)
    epochs = [np.concatenate([b["tokens"] for b in take(batches, len(every))]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, every))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != every).any()


@pytest.mark.parametrize("done", [0, 1, 7, 40])
def test_a_restored_iterator_goes_on_exactly(prepared, done):
    batches = train_batches(prepared, 4, seed=3)
    take(batches, done)
    state = json.dumps(batches.get_state())
    expected = take(batches, 12)
    resumed = train_batches(prepared, 4, seed=3)
    take(resumed, 2)
    resumed.set_state(json.loads(state))
    assert_same(take(resumed, 12), expected)


def test_a_run_may_resume_on_another_number_of_processes(prepared):
    pair = [train_batches(prepared, 4, 3, p, 2) for p in range(2)]
    for iterator in pair:
        take(iterator, 5)
    alone = train_batches(prepared, 4, 3)
    alone.set_state(pair[0].get_state())
    assert_same(take(alone, 5), join([take(iterator, 5) for iterator in pair]))


def test_evaluation_repeats_and_stops(prepared):
    batches = eval_batches(prepared, "validation", 4)
    first = list(batches)
    assert_same(list(batches), first)
    assert len(first) == -(-len(prepared.windows("validation")) // 4)
    assert_same(list(eval_batches(prepared, "validation", 4, limit=2)), first[:2])
    assert_same(list(eval_batches(prepared, "validation", 4, limit=10**6)), first)


def test_batch_and_seed_default_to_the_config(prepared):
    assert_same(take(train_batches(prepared), 3), take(train_batches(prepared, 4, 0), 3))


def test_bad_arguments_are_named(prepared):
    with pytest.raises(
        ValueError, match=r"data\.batch=6 must be a positive multiple of the 4 proc"
    ):
        train_batches(prepared, 6, process_count=4)
    with pytest.raises(ValueError, match=r"process_index=2 must be from 0 to 1"):
        eval_batches(prepared, "test", 4, 2, 2)
    with pytest.raises(
        ValueError, match=r"no split 'valid': this data has train, validation, test"
    ):
        eval_batches(prepared, "valid")
