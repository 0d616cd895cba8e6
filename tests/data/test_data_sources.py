"""Files to documents to splits: order, hashes and every kind of bad file."""

import dataclasses
import hashlib
import json

import pytest

from zoo.data import DataConfig, prepare
from zoo.data.sources import SPLITS, glob_files, read_documents, scan, split_of, stdlib_files


def config_of(*patterns, **fields):
    fields = {"validation_fraction": 0, "test_fraction": 0, **fields}
    return DataConfig(source="glob", files=tuple(map(str, patterns)), **fields)


def texts(config):
    corpus = scan(config)
    return [d.data.decode() for split in corpus.splits for d in corpus.documents(split)]


def test_the_committed_corpus_hashes_to_known_values(config):
    corpus = scan(config)
    assert corpus.sha256 == "cd30f4d866758631eb64cbac935c69bc6b910199c59f03c158b45fbf9211f728"
    assert {name: split.documents for name, split in corpus.splits.items()} == {
        "train": 29,
        "validation": 3,
        "test": 6,
    }


def test_the_splits_share_out_every_document(config, corpus):
    files, root = glob_files(config.files)
    every = [d.data for d in read_documents(files, root, "text", [])]
    scanned = scan(config)
    shared = [d.data for split in SPLITS for d in scanned.documents(split)]
    assert sorted(shared) == sorted(every)
    lines = (corpus / "lines.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(every) >= {json.loads(line)["text"].encode() for line in lines if line} - {b""}
    assert (corpus / "notes/dos.txt").read_bytes() in every
    for name, split in scanned.splits.items():
        assert split.bytes == sum(len(d.data) for d in scanned.documents(name))


def test_the_split_follows_from_the_bytes_alone():
    assert split_of(bytes(32), (0.02, 0.02)) == "test"
    assert split_of(bytes([5]) + bytes(31), (0.02, 0.02)) == "test"  # 5/256 = 0.0195
    assert split_of(bytes([6]) + bytes(31), (0.02, 0.02)) == "validation"
    assert split_of(bytes([11]) + bytes(31), (0.02, 0.02)) == "train"  # 11/256 = 0.043
    assert split_of(bytes([255] * 32), (0.02, 0.02)) == "train"
    assert split_of(hashlib.sha256(b"zoo").digest(), (0.5, 0.25)) == "test"  # 0x24fe... = 0.144


def test_adding_and_renaming_files_moves_no_document(config, corpus, tmp_path):
    before = scan(config)
    for number, file in enumerate(sorted(f for f in corpus.rglob("[!.]*.*"))):
        (tmp_path / f"{number}{file.suffix}").write_bytes(file.read_bytes())
    (tmp_path / "new.txt").write_text("A new document.")
    after = scan(dataclasses.replace(config, files=(str(tmp_path / "*"),)))
    for split in SPLITS:
        old = {d.data for d in before.documents(split)}
        new = {d.data for d in after.documents(split)}
        assert old <= new
        assert new - old <= {b"A new document."}


def test_overlapping_patterns_give_each_file_once(corpus):
    once = scan(config_of(corpus / "notes/*.md", corpus / "*.txt"))
    twice = scan(config_of(corpus / "*.txt", corpus / "notes/*.md", corpus / "h*.txt"))
    assert once.sha256 == twice.sha256
    assert once.splits == twice.splits


def test_the_jsonl_field_can_be_named(corpus):
    found = texts(config_of(corpus / "lines.jsonl", jsonl_field="body"))
    assert "AN ANCHOR IS A PROMISE MADE TO MUD." in found


def test_a_jsonl_field_without_jsonl_files_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"data\.jsonl_field='body' is of \.jsonl files, and data"):
        scan(config_of(tmp_path / "a.txt", jsonl_field="body"))


def test_the_standard_library_comes_without_tests_and_in_order():
    files, root = stdlib_files()
    names = [f.relative_to(root).as_posix() for f in files]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert all(name.endswith(".py") for name in names)


def test_files_and_lines_that_are_not_utf8_are_skipped_and_named_once(tmp_path, caplog):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "half.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "\xff"}\n{"text": "\\ud800"}\n{"text": "two"}'
    )
    assert texts(config_of(tmp_path / "*")) == ["good", "one", "two"]
    messages = [r.getMessage() for r in caplog.records if "UTF-8" in r.getMessage()]
    skipped = "half.jsonl:2, half.jsonl:3, latin.txt"
    assert messages == [f"Skipped 3 files or lines that are not UTF-8: {skipped}"]


def test_a_pattern_that_matches_nothing_is_named_even_among_others(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"pattern '.*/\*\.tex' matches no file in .*: check"):
        prepare(config_of(corpus / "*.txt", tmp_path / "*.tex"), tmp_path)


def test_an_empty_corpus_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    says = r"data\.files=.*\*\.txt.* holds no text: all of its files \(2\)"
    with pytest.raises(ValueError, match=says):
        prepare(config_of(tmp_path / "*.txt"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        (
            (0.02, 0),
            r"split 'validation' gets none of the 1 documents at data\.validation_fraction",
        ),
        ((0, 0.02), r"split 'test' gets none of the 1 documents at data\.test_fraction=0\.02: add"),
        (
            (0.99, 0),
            r"split 'train' gets none of the 1 documents: add documents, or lower",
        ),
    ],
)
def test_a_split_without_documents_is_refused(tmp_path, fractions, message):
    text = "in train" if fractions[0] < 0.5 else "elsewhere"
    (tmp_path / "one.txt").write_text(text)
    validation, test = fractions
    fields = {"validation_fraction": validation, "test_fraction": test}
    with pytest.raises(ValueError, match=message):
        prepare(config_of(tmp_path / "one.txt", **fields), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut off', r"bad\.jsonl, line 2: not JSON \(Unterminated string"),
        (
            '{"body": "x", "id": 3}',
            r"line 2: no field 'text', it has fields 'body', 'id'; set data",
        ),
        ('["text"]', r"line 2: no field 'text', it has no fields"),
        ('{"text": 7}', r"line 2: field 'text' is 7, not text"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        scan(config_of(tmp_path / "*.jsonl"))


def test_a_file_that_changes_between_scan_and_read_is_noticed(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    corpus = scan(config_of(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("after")
    with pytest.raises(ValueError, match=r"changed while split 'train' was read"):
        list(corpus.documents("train"))
