"""Thoughts are told apart from answers, however the text comes in pieces."""

import pytest
from tokenizers import Tokenizer, decoders, models

from tests.hf import conversations
from tests.inference.test_talk import byte_level
from zoo.serve.thoughts import MARKS, Counter, Splitter, Thinks, marks_of, thinks

THINK, CHANNELS = MARKS[0], MARKS[-1]
SAID = [
    (False, "<think>\nHm, a < b.\n</think>\n\nYes.\n", "Hm, a < b.", "Yes.\n"),
    (False, " \n<think>Hm</think>Yes", "Hm", "Yes"),
    (False, "<think>\n\n</think>\n\nYes", "", "Yes"),
    (False, "<think>Hm\n\nand </thin", "Hm\n\nand </thin", ""),
    (False, "\nYes: <think>no</think>", "", "\nYes: <think>no</think>"),
    (False, "<thin", "", "<thin"),
    (False, "", "", ""),
    (True, "Hm\n</think>\n\nYes </think>", "Hm", "Yes </think>"),
    (True, "\nHm", "Hm", ""),
]
NEXT, FINAL = "<|end|><|start|>assistant", "<|channel|>final<|message|>"
OPEN, ASIDE = "<|channel|>analysis<|message|>", "<|channel|>commentary<|message|>"
IN_CHANNELS = [
    (f"{OPEN}Hm.{NEXT}{FINAL}Yes", "Hm.", "Yes"),
    (f"{FINAL}Yes", "", "Yes"),
    (f"{OPEN}Hm.{NEXT}<|channel|>commentary to", "Hm.", "<|channel|>commentary to"),
    (f"{OPEN}Hm.{NEXT}{OPEN}So.{NEXT}{FINAL}Yes", "Hm.\n\nSo.", "Yes"),
    (
        f"{OPEN}Hm.{NEXT}{ASIDE}I look.{NEXT}<|channel|>commentary to=functions.f",
        "Hm.",
        "I look.<|channel|>commentary to=functions.f",
    ),
    (f"{ASIDE}I look.<|en", "", "I look.<|en"),
    (f"{OPEN}Hm.<|end|>", "Hm.<|end|>", ""),
    (f"{OPEN}Hm.{NEXT}", "Hm.", ""),
    ("Yes", "", "Yes"),
]


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize(("opened", "text", "thought", "answer"), SAID)
def test_the_thought_ends_at_its_mark(opened, text, thought, answer, size):
    splitter = Splitter(Thinks(THINK, opened))
    pieces = [splitter.push(text[i : i + size]) for i in range(0, len(text), size)]
    found = ["".join(parts) for parts in zip(*pieces, splitter.end(), strict=True)]
    assert found == [thought, answer]


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize(("text", "thought", "answer"), IN_CHANNELS)
def test_channels_say_what_is_a_thought(text, thought, answer, size):
    splitter = Splitter(Thinks(CHANNELS, False))
    pieces = [splitter.push(text[i : i + size]) for i in range(0, len(text), size)]
    found = ["".join(parts) for parts in zip(*pieces, splitter.end(), strict=True)]
    assert found == [thought, answer]


COUNTED = [
    (Thinks(THINK, False), "<think>", "\nHm ä.\n", "</think>\n\nYes </think>"),
    (Thinks(THINK, False), " \n<think>", "ä", "</think>"),
    (Thinks(THINK, False), "<think>", "", "</think>Yes"),
    (Thinks(THINK, False), "<think>", "Hm</thin", ""),
    (Thinks(THINK, False), "<think>", "", ""),
    (Thinks(THINK, False), "", "", "<thin"),
    (Thinks(THINK, False), "", "", "Yes <think>no</think>"),
    (Thinks(THINK, True), "", "ä Hm", "</think>Yes"),
    (Thinks(THINK, True), "", "", "</think>Yes"),
    (Thinks(THINK, True), "", "Hm", ""),
    (Thinks(CHANNELS, False), OPEN, "Hm.", f"{NEXT}{FINAL}Yes"),
    (Thinks(CHANNELS, False), OPEN, "Hm.", f"{NEXT}<|channel|>ana"),
    (Thinks(CHANNELS, False), "", "", f"{FINAL}Yes"),
]


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(("how", "before", "thought", "behind"), COUNTED)
def test_tokens_of_a_thought_are_counted_without_its_marks(how, before, thought, behind, size):
    tokenizer = byte_level()
    tokens = [tokenizer.encode(text).ids for text in (before, thought, behind)]
    counter = Counter(how, tokenizer, skip_special=False)
    together = [token for part in tokens for token in part]
    for i in range(0, len(together), size):
        counter.push(together[i : i + size])
    assert counter.tokens == len(tokens[1])


def test_thoughts_between_texts_are_counted_alone():
    tokenizer = byte_level()
    parts = [f"{OPEN}Hm.{NEXT}", f"{ASIDE}I look.{NEXT}", f"{OPEN}So, so.{NEXT}", f"{FINAL}Yes"]
    counter = Counter(Thinks(CHANNELS, False), tokenizer, skip_special=False)
    counter.push(tokenizer.encode("".join(parts)).ids)
    assert counter.tokens == len("Hm.So, so.")


def test_a_token_that_is_of_a_thought_and_of_a_mark_is_counted():
    vocabulary = {text: i for i, text in enumerate(["<think>", "\nH", "m.\n</", "think>", "Yes"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "Yes"))
    tokenizer.decoder = decoders.Fuse()
    for tokens, count in (([0, 1, 2, 3, 4], 2), ([0, 1], 1), ([0, 2, 3], 1), ([0, 1, 1], 2)):
        counter = Counter(Thinks(THINK, False), tokenizer, skip_special=False)
        counter.push(tokens)
        assert counter.tokens == count


def test_pieces_come_as_soon_as_they_are_certain():
    splitter = Splitter(Thinks(THINK, False))
    assert splitter.push("<think>a") == ("a", "")
    assert splitter.push("b\n</") == ("b", "")
    assert splitter.push("x") == ("\n</x", "")
    assert splitter.push("</think>\nc") == ("", "c")
    assert splitter.push("d\n") == ("", "d\n")


def test_a_prompt_tells_whether_the_answer_begins_within_a_thought():
    assert thinks(THINK, "<|Assistant|><think>\n") == Thinks(THINK, True)
    assert thinks(THINK, "<|im_start|>assistant\n") == Thinks(THINK, False)
    assert thinks(THINK, "<think>\n\n</think>\n\n") is None
    assert thinks(None, "<think>") is None


def test_templates_show_their_marks():
    shown = {**dict.fromkeys(("deepseek", "kimi", "qwen3"), THINK), "gpt_oss": CHANNELS}
    for name, marks in {**shown, "llama3": None, "mistral": None, "gemma": None}.items():
        assert marks_of((conversations.FOLDER / f"{name}.jinja").read_text()) is marks
    assert [marks_of(f"x{m.close}") for m in MARKS[:-1]] == list(MARKS[:-1])
    assert marks_of("<|assistant|>{{ m.content }}<|end|>") is None  # Phi's
