"""Tokenizers of folders: tokenizer.json as it is, tiktoken files converted, others named."""

import base64
import itertools
import json
import logging
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from zoo.hf.load import load
from zoo.hf.tokenizer import NoTokenizer, find_tokenizer, open_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden" / "llama"


def byte_ranks(tokens: list[str]) -> dict[bytes, int]:
    """Every byte, then prefix by prefix what leads to `tokens`, then these."""
    ranks = {bytes([i]): i for i in range(256)}
    for token in tokens:
        data = token.encode()
        for end in range(2, len(data) + 1):
            ranks.setdefault(data[:end], len(ranks))
    return ranks


def bpe(ranks: dict[bytes, int], word: str) -> list[int]:
    """tiktoken's definition: a token as it is, else the lowest pair merged, the leftmost first."""
    data = word.encode()
    if data in ranks:
        return [ranks[data]]
    parts = [data[i : i + 1] for i in range(len(data))]
    while True:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        if not joined or min(joined) == len(ranks):
            return [ranks[part] for part in parts]
        i = joined.index(min(joined))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def moonshot_folder(folder: Path, ranks: dict[bytes, int]) -> Path:
    """A folder as Moonshot ships it, with eight ids for special tokens and names for three."""
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    n, flags = len(ranks), dict(lstrip=False, rstrip=False, single_word=False, normalized=False)
    added = {
        n: dict(content="[BOS]", special=True, **flags),
        n + 3: dict(content="<|im_end|>", special=True, **flags),
        n + 7: dict(content="<|tool|>", special=False, **flags),
    }
    config = {
        "added_tokens_decoder": {str(i): token for i, token in added.items()},
        "bos_token": "[BOS]",
        "tokenizer_class": "TikTokenTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def ranks() -> dict[bytes, int]:
    return byte_ranks(["the", " the", "你好", "世界", "123", "\n\n", "don", "'t"])


@pytest.fixture
def moonshot(tmp_path, ranks) -> Path:
    return moonshot_folder(tmp_path, ranks)


# Words by hand from the pattern: Han runs alone; one character before letters; up to three digits;
# a capital begins a word after a small letter; a contraction stays with its word.
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("你好English世界", ["你好", "English", "世界"]),
        ("北京 Pascal", ["北京", " Pascal"]),
        ("a 你好", ["a", " ", "你好"]),
        ("camelCaseHTTPServer", ["camel", "Case", "HTTPServer"]),
        ("don't DON'T", ["don't", " DON'T"]),
        ("1234567", ["123", "456", "7"]),
        ("日本語のテキスト々", ["日本語", "のテキスト", "々"]),
        ("the  end\n\n x", ["the", " ", " end", "\n\n", " x"]),
        ("!?\n()", ["!?\n", "()"]),
    ],
)
def test_moonshot_splits_words(moonshot, ranks, text, words):
    ours = open_tokenizer(moonshot)
    pieces = ours.pre_tokenizer.pre_tokenize_str(text)
    assert [text[a:b] for _, (a, b) in pieces] == words
    assert ours.encode(text).ids == [i for word in words for i in bpe(ranks, word)]
    assert ours.decode(ours.encode(text).ids) == text


def test_a_word_that_is_a_token_is_taken_whole(tmp_path):
    """No pair of tokens makes "xyz": merges never reach it, tiktoken takes it all the same."""
    ranks = byte_ranks([]) | {b"xyz": 256}
    ours = open_tokenizer(moonshot_folder(tmp_path, ranks))
    assert ours.encode("xyz").ids == [256]
    assert ours.encode("xyza").ids == [120, 121, 122, 97]


def test_special_tokens_have_the_ids_of_the_config(moonshot, ranks):
    ours, n = open_tokenizer(moonshot), len(ranks)
    assert ours.get_vocab_size() == n + 8
    ids = ours.encode(f"[BOS]the<|im_end|><|tool|><|reserved_token_{n + 1}|>").ids
    assert ids == [n, ranks[b"the"], n + 3, n + 7, n + 1]
    assert ours.decode(ids, skip_special_tokens=True) == "the<|tool|>"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tiktoken.model", b"YQ== 0\n!! 1\n", r"tiktoken\.model, line 2: .* is not 'base64 rank'"),
        ("tiktoken.model", b"YQ== 0\nYg==\n", r"line 2"),
        ("tiktoken.model", b"YQ== 0\nYg== 2\n", r"ranks of its 2 tokens are not 0 to 1"),
        ("tiktoken.model", b"YQ== 0\n", r"no token for the byte 0; is it cut short"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json is not JSON"),
        ("tokenizer_config.json", b"[]", r"tokenizer_config\.json holds a list"),
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": "TikTokenTokenizer",'
            b' "added_tokens_decoder": {"3": {"content": "x"}}}',
            r"'x' has the id 3, which belongs to tiktoken\.model",
        ),
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": {"a": {}}}',
            r"no token under 'a'",
        ),
        (
            "tokenizer_config.json",
            b"{}",
            r"and .*tokenizer_config\.json says None; add a tokenizer\.json",
        ),
    ],
)
def test_damage_is_named(moonshot, file, content, says):
    (moonshot / file).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        open_tokenizer(moonshot)


def test_truncation_and_padding_of_a_file_are_not_applied(tmp_path):
    made = Tokenizer.from_file(str(GOLDEN / "tokenizer.json"))
    made.enable_truncation(2)
    made.enable_padding(length=9)
    made.save(str(tmp_path / "tokenizer.json"))
    assert len(open_tokenizer(tmp_path).encode("abcde").ids) == 5


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tokenizer.model", "pip install transformers sentencepiece"),
        ("tekken.json", "mistral-common"),
    ],
)
def test_foreign_formats_are_named_and_do_not_stop_a_load(tmp_path, caplog, name, says):
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "llama"))
    (folder / "tokenizer.json").rename(folder / name)
    with pytest.raises(NoTokenizer, match=says):
        open_tokenizer(folder)
    with caplog.at_level(logging.WARNING, "absl"):
        assert load(folder).tokenizer is None
    assert says in caplog.text


def test_no_tokenizer_at_all_is_silent(tmp_path, caplog):
    assert find_tokenizer(tmp_path) is None
    assert not caplog.records
