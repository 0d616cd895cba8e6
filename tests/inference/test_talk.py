"""Conversations in text: answers are `generate`'s, pieces are whole characters, and it goes on."""

import dataclasses
import io
import signal
import sys

import jax
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import zoo
from tests.examples import CONFIGS, random_params
from zoo.hf.chat import open_chat
from zoo.hf.tokenizer import byte_letters
from zoo.inference import terminal
from zoo.inference.talk import Talk, text_of
from zoo.inference.text import Detokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<|%s|>' % m.role + m.content + '<|end|>' }}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt }}"
)
SPECIAL = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
SEVERAL = "naïve 你好 👩‍🚀 \ufffd a"


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    return made


def byte_fallback() -> Tokenizer:
    """As sentencepiece models are converted: words carry the space before them."""
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁a", "▁", "a", "n", "v", "e", "▁好"]
    made = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_pieces_are_whole_characters_and_the_whole_text(make):
    tokenizer = make()
    ids = tokenizer.encode(SEVERAL).ids
    pieces = list(text_of(ids, tokenizer))
    assert "".join(pieces) == tokenizer.decode(ids) == SEVERAL
    assert all(len(piece) == 1 for piece in pieces[:-2]), pieces
    assert not any("\ufffd" in piece for piece in pieces if piece != "\ufffd ")
    assert list(text_of([], tokenizer)) == []


def test_bytes_that_never_become_characters_are_not_read_again_and_again():
    class Counted:
        most, decoded = 0, byte_level()

        def decode(self, ids, **options):
            self.most = max(self.most, len(ids))
            return self.decoded.decode(ids, **options)

    tokenizer = Counted()
    middle = tokenizer.decoded.token_to_id(byte_letters()[128])
    text = Detokenizer(tokenizer)
    assert "".join(map(text.push, [middle] * 1000)) + text.rest() == "\ufffd" * 1000
    assert tokenizer.most < 200


def test_bytes_that_are_no_text_come_out_as_decode_writes_them(rng):
    tokenizer = byte_level()
    for _ in range(300):
        ids = rng.integers(0, tokenizer.get_vocab_size(), rng.integers(1, 30)).tolist()
        assert "".join(text_of(ids, tokenizer)) == tokenizer.decode(ids)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model of 260 tokens, its parameters, and a chat."""
    folder = tmp_path_factory.mktemp("chat")
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    model = zoo.Decoder(dataclasses.replace(CONFIGS["dense"], vocab_size=260, max_length=192))
    return model, random_params(model), open_chat(folder)


def wanted(parts, messages, count) -> str:
    model, params, chat = parts
    made = zoo.generate(model, params, [chat.encode(messages)], count)[0]
    return chat.tokenizer.decode(made)


def test_answers_are_those_of_generate_to_all_that_was_said(parts):
    talk = Talk(*parts, system="Hm.", max_new_tokens=10)
    said = [{"role": "system", "content": "Hm."}]
    for text in ("Hi", "你好"):
        said.append({"role": "user", "content": text})
        answer = "".join(talk.answer(text))
        assert answer == wanted(parts, said, 10)
        said.append({"role": "assistant", "content": answer})
        assert talk.messages == said
    talk.reset()
    assert talk.messages == said[:1]


def test_the_token_that_ends_an_answer_is_not_shown(parts):
    model, params, chat = parts
    prompt = chat.encode([{"role": "user", "content": "Hi"}])
    made = zoo.generate(model, params, [prompt], 10)[0]
    chat = dataclasses.replace(chat, eos=(made[5],))
    talk = Talk(model, params, chat, max_new_tokens=10)
    assert "".join(talk.answer("Hi")) == chat.tokenizer.decode(made[: made.index(made[5])])


def test_seeds_give_answers_again(parts):
    def say(seed):
        talk = Talk(*parts, max_new_tokens=10, rng=jax.random.key(seed), temperature=2.0)
        first = "".join(talk.answer("Hi"))
        talk.reset()
        return first, "".join(talk.answer("Hi"))

    assert say(0) == say(0)
    assert len({*say(0), *say(1)}) == 4


def test_an_answer_that_is_broken_off_is_remembered_as_far_as_it_got(parts):
    talk = Talk(*parts, max_new_tokens=10)
    pieces = talk.answer("Hi")
    begun = next(pieces) + next(pieces)
    pieces.close()
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": begun}]
    assert talk.messages == said
    again = [*said, {"role": "user", "content": "Yes"}]
    assert "".join(talk.answer("Yes")) == wanted(parts, again, 10)


def test_the_context_is_filled_and_then_refused(parts):
    talk = Talk(*parts, max_new_tokens=10)
    list(talk.answer("a" * 180))
    before = list(talk.messages)
    with pytest.raises(ValueError, match=r"has \d+ tokens, .* max_length is 192: begin a new one"):
        talk.answer("b" * 10)
    assert talk.messages == before
    with pytest.raises(ValueError, match=r"top_p=2\.0 must be above 0"):
        Talk(*parts, temperature=1.0, top_p=2.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Interrupting(io.StringIO):
    """Presses Ctrl-C while the third piece is written."""

    writes = 0

    def write(self, text):
        self.writes += text not in ("", "\n", "> ", terminal.HELP)
        if self.writes == 3:
            self.writes += 1
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.fixture
def heeding():
    """Ctrl-C raises, also where the tests run in the background and shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding")
def test_ctrl_c_stops_the_answer_and_not_the_conversation(parts, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("Hi\nYes\n/exit\nnever\n"))
    monkeypatch.setattr(sys, "stdout", Interrupting())
    talk = Talk(*parts, max_new_tokens=10)
    terminal.converse(talk)
    user, begun, yes, answer = talk.messages
    assert (user["content"], yes["content"]) == ("Hi", "Yes")
    whole = wanted(parts, [user], 10)
    assert whole.startswith(begun["content"])
    assert begun["content"] != whole
    assert answer["content"] == wanted(parts, [user, begun, yes], 10)


def test_an_error_ends_a_script_and_not_a_terminal(parts, monkeypatch, capsys):
    lines = "{}\n\n/reset\nHi\n".format("a" * 500)
    monkeypatch.setattr(sys, "stdin", Terminal(lines))
    talk = Talk(*parts, max_new_tokens=10)
    terminal.converse(talk)
    out = capsys.readouterr()
    assert "max_length is 192" in out.err
    assert wanted(parts, talk.messages[:1], 10) in out.out
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    with pytest.raises(ValueError, match="max_length is 192"):
        terminal.converse(talk)
