"""Chat templates and tokenizers beside transformers: the same text, ids and words."""

import numpy as np
import pytest

from tests.hf import conversations as talks
from tests.hf.test_tokenizer import bpe, byte_ranks, moonshot_folder
from zoo.hf import tokenizer as tokenizers_of
from zoo.hf.chat import open_chat
from zoo.hf.tokenizer import open_tokenizer

transformers = pytest.importorskip(
    "transformers", reason="live parity needs torch and transformers"
)
regex = pytest.importorskip("regex", reason="comes with transformers")

# Han, its digits and marks; other scripts; case, marks and apostrophes; digits; white space; emoji.
ALPHABETS = (
    "漢字谷々〇〡⺀", "あカ한ก", "abXY'stlm", "éßſǅʰªº\u0301", "019٣Ⅷ",
    "  \n\r\t\u00a0\u3000\u0085\x1c", ".,!?-_。", "😀👩‍🚀🏽",
)  # fmt: skip


@pytest.mark.parametrize("template", talks.TEMPLATES)
def test_templates_render_as_in_transformers(template, tmp_path):
    from tests.parity.chat import rendered

    folder = talks.folder(template, tmp_path)
    chat = open_chat(folder)
    for name, talk in talks.CONVERSATIONS.items():
        talks.check(chat, name, rendered(folder, talk))


def test_ids_dates_and_named_templates_as_transformers_saves_them(tmp_path):
    reference = transformers.AutoTokenizer.from_pretrained(talks.folder("llama3", tmp_path))
    reference.chat_template = {
        "default": "{{ strftime_now('%Y %B') }} {{ bos_token }}{{ messages[0].content }}",
        "tool_use": "{{ tools | tojson(indent=2) }}{{ eos_token }}",
    }
    reference.save_pretrained(tmp_path / "saved")
    chat = open_chat(tmp_path / "saved")
    messages = [{"role": "user", "content": "Hello </s> there"}]
    for tools in (None, [talks.CLOCK]):
        wanted = reference.apply_chat_template(messages, tools=tools, return_dict=False)
        assert chat.encode(messages, tools=tools, add_generation_prompt=False) == wanted
    assert chat.special == reference.special_tokens_map


def texts(count: int):
    rng = np.random.default_rng(0)
    for _ in range(count):
        pool = list("".join(rng.choice(ALPHABETS, rng.integers(1, 4))))
        yield "".join(rng.choice(pool, rng.integers(1, 40)))


def test_moonshot_words_and_ids_are_those_of_another_engine(tmp_path):
    """Against the regex package's reading of the pattern, and the BPE of the definition."""
    ranks = byte_ranks(["the", " the", "ing", "你好", "世界", "éß", "123", "\n\n", "abc"])
    ours = open_tokenizer(moonshot_folder(tmp_path, ranks))
    words = regex.compile(tokenizers_of.MOONSHOT, regex.V1)
    for text in texts(3000):
        split = words.findall(text)
        assert "".join(split) == text
        pieces = ours.pre_tokenizer.pre_tokenize_str(text)
        assert [text[a:b] for _, (a, b) in pieces] == split, repr(text)
        assert ours.encode(text).ids == [i for word in split for i in bpe(ranks, word)], repr(text)
