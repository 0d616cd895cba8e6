"""Preparing: deterministic, cached, whole or not at all, and TFDS in and out without TensorFlow."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.processes import ends
from zoo.data import DataConfig, default_cache_dir, eval_batches, prepare


def contents(folder):
    """Bytes by relative path of the streams and the tokenizer."""
    files = (f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def streams(prepared):
    return contents(prepared.folder) | contents(prepared.tokenizer.folder)


def test_a_second_preparation_elsewhere_gives_the_same_bytes(prepared, config, tmp_path):
    again = prepare(config, tmp_path)
    assert streams(again) == streams(prepared)
    assert again.summary() == prepared.summary()
    assert contents(again.folder.parents[1] / "corpora") == contents(
        prepared.folder.parents[1] / "corpora"
    )


def test_a_second_call_writes_nothing(prepared, config, cache):
    before = {f: f.stat().st_mtime_ns for f in cache.rglob("*")}
    assert prepare(config, cache) == prepared
    assert {f: f.stat().st_mtime_ns for f in cache.rglob("*")} == before


def test_window_batch_and_seed_need_no_new_preparation(prepared, config, cache):
    other = prepare(dataclasses.replace(config, window=7, batch=2, seed=9), cache)
    assert other.folder == prepared.folder
    assert next(iter(eval_batches(other, "train")))["tokens"].shape == (2, 7)


def test_the_summary_is_json(prepared):
    summary = json.loads(json.dumps(prepared.summary()))
    assert summary["corpus_sha256"] == prepared.corpus_sha256
    assert summary["splits"]["train"]["tokens"] == prepared.splits["train"].tokens


def test_any_change_of_text_or_split_changes_the_hash(prepared, config, corpus, cache, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    letter = tmp_path / "corpus/letter.txt"
    letter.write_bytes(b"b")
    moved = dataclasses.replace(config, files=(str(tmp_path / "corpus/**/*.*"),))
    assert prepare(moved, cache).sha256 != prepared.sha256
    letter.write_bytes(b"a")
    assert prepare(moved, cache).sha256 == prepared.sha256
    fewer = dataclasses.replace(config, test_fraction=0.1)
    assert prepare(fewer, cache).sha256 != prepared.sha256
    assert prepare(fewer, cache).corpus_sha256 == prepared.corpus_sha256


def test_another_tokenizer_predicts_the_same_bytes(prepared, config, cache, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 70_000}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    other = prepare(dataclasses.replace(config, tokenizer=str(tmp_path)), cache)
    assert other.tokenizer_sha256 != prepared.tokenizer_sha256
    assert other.vocab_size == 70_001
    for split, stats in prepared.splits.items():
        assert other.splits[split].bytes == stats.bytes
        assert other.splits[split].documents == stats.documents
    seen = {int(t) for b in eval_batches(other, "train") for t in b["tokens"].flat}
    assert seen == {0, 1, 70_000}  # More than 16 bits come back whole.


def test_more_documents_than_are_read_at_once(cache, tmp_path):
    lines = [f"line {i} of many" for i in range(600)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    fields = {"validation_fraction": 0, "test_fraction": 0, "vocab_size": 300, "window": 16}
    found = prepare(DataConfig(source="glob", files=str(tmp_path / "many.jsonl"), **fields), cache)
    tokens = [t for b in eval_batches(found, "train") for t in b["tokens"][b["segment_ids"] > 0]]
    texts = found.tokenizer.decode(tokens).split("<|endoftext|>")
    assert [t for t in texts if t] == lines


def test_a_split_can_be_left_out(config, cache):
    found = prepare(dataclasses.replace(config, test_fraction=0), cache)
    assert tuple(found.splits) == ("train", "validation")


def test_the_dataset_is_a_tfds_dataset_that_can_be_read_again(prepared, dataset, cache):
    import tensorflow_datasets as tfds

    metadata = tfds.builder_from_directory(str(dataset)).info.metadata
    assert metadata["corpus_sha256"] == prepared.corpus_sha256
    again = DataConfig(source="tfds", data_dir=str(dataset), vocab_size=400, window=24)
    by_name = DataConfig(
        source="tfds", name="zoo_text", data_dir=str(dataset.parents[1]), vocab_size=400, window=24
    )
    found = prepare(again, cache)
    assert prepare(by_name, cache).sha256 == found.sha256
    assert found.splits == prepared.splits
    for split in prepared.splits:
        pairs = zip(eval_batches(found, split), eval_batches(prepared, split, 16), strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(a["targets"], b["targets"])


def test_slices_and_left_out_splits_of_tfds(prepared, dataset, cache):
    found = prepare(
        DataConfig(
            source="tfds",
            data_dir=str(dataset),
            train_split="train[:75%]",
            validation_split="train[75%:]",
            test_split=None,
            vocab_size=300,
        ),
        cache,
    )
    assert tuple(found.splits) == ("train", "validation")
    documents = [found.splits[s].documents for s in found.splits]
    assert sum(documents) == prepared.splits["train"].documents
    assert documents[0] > 2 * documents[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"train_split": "training"},
            r"data\.train_split='training' is not in zoo_text/1\.0\.0, which has",
        ),
        (
            {"test_split": "test[:0]"},
            r"data\.test_split='test\[:0\]' of zoo_text/1\.0\.0 holds no doc",
        ),
        ({"name": "books"}, r"holds zoo_text/1\.0\.0, which is not data\.name='books': leave"),
        ({"text_feature": "body"}, r"data\.text_feature='body' is not a text .* are .*text"),
    ],
)
def test_what_a_tfds_dataset_lacks_is_named(dataset, cache, fields, message):
    with pytest.raises(ValueError, match=message):
        prepare(DataConfig(source="tfds", data_dir=str(dataset), **fields), cache)


def test_a_tfds_dataset_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.name='books' is not prepared in data\.data_dir"):
        prepare(DataConfig(source="tfds", name="books", data_dir=str(tmp_path)), tmp_path)
    with pytest.raises(ValueError, match=r"holds no dataset_info\.json: set data\.name"):
        prepare(DataConfig(source="tfds", data_dir=str(tmp_path)), tmp_path)


def test_records_that_only_tensorflow_reads_are_refused(dataset, tmp_path):
    folder = tmp_path / "zoo_text/1.0.0"
    shutil.copytree(dataset, folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"stored as tfrecord, .* file_format='array_record'"):
        prepare(DataConfig(source="tfds", data_dir=str(folder)), tmp_path / "cache")


def test_a_truncated_stream_is_noticed(config, prepared, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "cache")
    file = tmp_path / "cache/tokens" / prepared.folder.name / "train.tokens"
    os.truncate(file, file.stat().st_size - 2)
    with pytest.raises(ValueError, match=r"train\.tokens has \d+ bytes, not \d+: remove"):
        prepare(config, tmp_path / "cache")


def test_too_small_a_vocabulary_stops_before_work(config, tmp_path):
    with pytest.raises(ValueError, match=r"data\.vocab_size=100 must be at least 258"):
        prepare(dataclasses.replace(config, vocab_size=100), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


PREPARE = """
import json, os, signal, sys
from zoo.data import DataConfig, prepare

left = int(sys.argv[3])

def hook(event, arguments):
    global left
    if event == "os.rename" and str(arguments[1]).startswith(sys.argv[2]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
prepared = prepare(DataConfig.from_mapping(json.loads(sys.argv[1])), sys.argv[2])
assert "tensorflow" not in sys.modules
print(prepared.sha256)
"""


def start(config, cache, rename=0):
    fields = json.dumps(dataclasses.asdict(config))
    command = [sys.executable, "-c", PREPARE, fields, str(cache), str(rename)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def complete(cache, pattern):
    return any(".unfinished-" not in str(f) for f in cache.glob(pattern))


def test_a_kill_before_any_rename_leaves_nothing_that_looks_complete(prepared, config, tmp_path):
    steps = ("corpora/*/zoo_text/1.0.0", "tokenizers/*/tokenizer.json", "tokens/*/prepared.json")
    for done, step in enumerate(steps):
        process = start(config, tmp_path, rename=1)  # The steps before were kept: this one is next.
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert [complete(tmp_path, s) for s in steps] == [True] * done + [False] * (3 - done)
        if done < 2:
            process = start(config, tmp_path, rename=2)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert complete(tmp_path, step)
    assert streams(prepare(config, tmp_path)) == streams(prepared)
    names = [f.name for f in tmp_path.rglob("*")]
    assert not [n for n in names if n.startswith((".unfinished-", "incomplete."))]


def test_two_processes_at_once_prepare_once(prepared, config, tmp_path):
    both = [start(config, tmp_path) for _ in range(2)]
    for process, (out, err) in zip(both, ends(both), strict=True):
        assert (out.strip(), process.returncode) == (prepared.sha256, 0), err
    assert len(list((tmp_path / "tokens").iterdir())) == 1


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_full_disk_leaves_nothing_that_looks_complete(prepared, config, cache, tmp_path, done):
    """A limit on the size of a file stands in for the disk, in each of the three stages."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limited = tmp_path / "cache"
    stages = ("corpora", "tokenizers", "tokens")
    for stage in stages[:done]:
        shutil.copytree(cache / stage, limited / stage)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(OSError, match=r"too large.*set another cache folder"):
            prepare(config, limited)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    files = [f for stage in stages[done:] for f in (limited / stage).rglob("*") if f.is_file()]
    assert files == []
    assert streams(prepare(config, limited)) == streams(prepared)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("ZOO_CACHE")
    assert default_cache_dir().parts[-2:] == (".cache", "zoo")


def test_importing_zoo_data_is_light():
    code = (
        "import sys, zoo.data\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'tokenizers', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tensorflow_is_never_imported(prepared):
    next(iter(eval_batches(prepared, "train")))
    assert "tensorflow" not in sys.modules
