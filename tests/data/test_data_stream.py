"""Windows: whatever the length, they give back the documents, and each target is the next token."""

import pickle
from itertools import chain

import numpy as np
import pytest

from zoo.data import eval_batches
from zoo.data.sources import SPLITS, scan
from zoo.data.stream import write_stream

KEYS = ("tokens", "targets", "segment_ids", "positions")


def rows(prepared, split, batch=3):
    """All windows of a split as i32[windows, T] by name, the padding rows at the end included."""
    batches = list(eval_batches(prepared, split, batch))
    return {key: np.concatenate([b[key] for b in batches]) for key in KEYS}


def documents(prepared, split):
    """What the split should hold: every document as bos, tokens, eos."""
    tokenizer = prepared.tokenizer
    texts = [d.data.decode() for d in scan(prepared.config).documents(split)]
    return [[tokenizer.bos, *tokenizer.encode(t), tokenizer.eos] for t in texts]


@pytest.mark.parametrize("split", SPLITS)
def test_windows_joined_are_the_documents(cut, split):
    found = rows(cut, split)
    real = found["segment_ids"] > 0
    expected = documents(cut, split)
    assert found["tokens"][real].tolist() == list(chain(*expected))
    following = [[*document[1:], -1] for document in expected]
    assert found["targets"][real].tolist() == list(chain(*following))
    assert (found["targets"][~real] == -1).all()
    assert (found["positions"][~real] == 0).all()
    assert (found["tokens"][~real] == cut.tokenizer.pad).all()


def test_segments_and_positions_restart_with_documents_and_windows(cut):
    found = rows(cut, "train")
    starts = [i for d in documents(cut, "train") for i in [True] + [False] * (len(d) - 1)]
    slot = 0
    for segments, positions in zip(found["segment_ids"], found["positions"], strict=True):
        segment = position = 0
        for t in range(cut.window):
            if slot == len(starts):
                assert segments[t] == 0
                continue
            new = t == 0 or starts[slot]
            segment, position = (segment + 1, 0) if new else (segment, position + 1)
            assert (segments[t], positions[t]) == (segment, position)
            slot += 1
    assert slot == len(starts)


def test_only_the_last_window_has_padding(cut):
    stats = cut.splits["train"]
    real = rows(cut, "train", batch=1)["segment_ids"] > 0
    assert len(real) == stats.windows(cut.window)
    assert real[:-1].all()
    assert real.sum() == stats.tokens
    assert real[-1].any()


def test_streams_written_in_pieces_are_the_same(prepared, tmp_path):
    texts = [d.data.decode() for d in scan(prepared.config).documents("train")]
    stats = list(write_stream(tmp_path, "train", texts, prepared.tokenizer, at_once=500))
    assert len(stats) > 3
    assert stats[-1] == prepared.splits["train"]
    for name in ("train.tokens", "train.starts"):
        assert (tmp_path / name).read_bytes() == (prepared.folder / name).read_bytes()


@pytest.mark.parametrize("split", SPLITS)
def test_the_statistics_are_those_of_the_documents(prepared, split):
    stats = prepared.splits[split]
    expected = documents(prepared, split)
    assert stats.documents == len(expected)
    assert stats.tokens == sum(map(len, expected))
    assert stats.targets == (rows(prepared, split)["targets"] >= 0).sum()
    text = "".join(prepared.tokenizer.decode(d[1:-1]) for d in expected)
    assert stats.bytes == len(text.encode())


def test_arrays_are_int32_of_the_windows_shape(prepared):
    for batch in eval_batches(prepared, "validation", 3):
        assert tuple(batch) == KEYS
        assert all(a.dtype == np.int32 and a.shape == (3, 24) for a in batch.values())


def test_windows_can_be_sent_to_another_process(prepared):
    windows = prepared.windows("train")
    first = windows.batch([0, 1])
    sent = pickle.dumps(windows)
    assert len(sent) < 2000  # Paths and numbers, not the mapped files.
    for key, value in pickle.loads(sent).batch([0, 1]).items():
        np.testing.assert_array_equal(value, first[key])
