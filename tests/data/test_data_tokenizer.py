"""The tokenizer: exact round trips, the same in transformers, deterministic, and foreign ones."""

import json

import pytest

from zoo.data import load_tokenizer
from zoo.data.tokenizer import END, PAD, sample, train_tokenizer

TEXTS = (
    "def f(x):\n    return x  # twice\n\n\n",
    "  leading, trailing  ",
    "\r\n\ttabs and\x00control\x7f",
    "Übermütig, naïve é é 風 👩🏽‍🚀",
    f"quoted {END} and {PAD}{END}",
    "\ufeffmark",
    " ",
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_exactly(prepared, text):
    tokenizer = prepared.tokenizer
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.eos, tokenizer.pad} & set(ids)
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]


def test_it_learns_the_words_of_the_train_split(prepared):
    assert prepared.vocab_size == 400
    assert len(prepared.tokenizer.encode(" return")) < len(" return") / 2


def test_training_does_not_depend_on_the_order_of_texts(prepared, tmp_path):
    lines = [f"the {word} of the {other}" for word in TEXTS for other in TEXTS] * 3
    for name, order in (("a", lines), ("b", lines[::-1]), ("c", lines)):
        (tmp_path / name).mkdir()
        train_tokenizer(order, 300, tmp_path / name)
    files = [(tmp_path / n / "tokenizer.json").read_bytes() for n in "abc"]
    assert files[0] == files[1] == files[2]


def test_transformers_reads_the_folder(prepared):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(prepared.tokenizer.folder))
    ours = prepared.tokenizer
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        ours.bos,
        ours.eos,
        ours.pad,
    )
    assert len(theirs) == ours.vocab_size
    for text in TEXTS:
        if END in text:
            continue
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text


def test_a_sample_takes_about_its_share_in_any_order():
    texts = [f"text number {i}" for i in range(1000)]
    total = sum(map(len, texts))
    some = list(sample(texts, total // 4, total))
    assert 180 < len(some) < 320
    assert sorted(sample(texts[::-1], total // 4, total)) == sorted(some)
    assert list(sample(texts, total, total)) == texts


@pytest.fixture
def foreign(tmp_path):
    """A word-level tokenizer.json with a template, truncation and padding, alone in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>", "</s>", "<end>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}},
            (0, 1, 2),
        ),
        ({"tokenizer_config": {"eos_token": {"content": "<end>"}}}, (5, 5, 5)),
        ({"tokenizer_config": {"bos_token": None, "eos_token": "</s>"}}, (1, 1, 1)),
        ({"special_tokens_map": {"bos_token": "<s>", "eos_token": "</s>"}}, (0, 1, 1)),
        ({"config": {"bos_token_id": 0, "eos_token_id": [1, 5]}}, (0, 1, 1)),
    ],
)
def test_special_tokens_are_read_from_the_files_beside(foreign, files, expected):
    for name, values in files.items():
        (foreign / f"{name}.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(foreign)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == expected
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode("a b c a b") == [3, 4, 2, 3, 4]
    assert load_tokenizer(foreign / "tokenizer.json").sha256 == tokenizer.sha256


def test_eos_can_be_set_where_no_file_tells(foreign):
    with pytest.raises(ValueError, match=r"which token ends a document; set data\.eos_token"):
        load_tokenizer(foreign)
    assert load_tokenizer(foreign, eos_token="<end>").eos == 5
    with pytest.raises(ValueError, match=r"data\.eos_token='<stop>' is not a token of"):
        load_tokenizer(foreign, eos_token="<stop>")


def test_a_missing_or_broken_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.tokenizer=.*nowhere.*: there is no"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_too_small_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.vocab_size=257 must be at least 258"):
        train_tokenizer(["text"], 257, tmp_path)
