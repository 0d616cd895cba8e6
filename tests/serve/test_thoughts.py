"""Thoughts are told apart from answers, however the text comes in pieces."""

import pytest

from tests.hf import conversations
from zoo.serve.thoughts import MARKS, Splitter, Thinks, marks_of, thinks

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
OPEN = "<|channel|>analysis<|message|>"
IN_CHANNELS = [
    (f"{OPEN}Hm.{NEXT}{FINAL}Yes", "Hm.", "Yes"),
    (f"{FINAL}Yes", "", "Yes"),
    (f"{OPEN}Hm.{NEXT}<|channel|>commentary to", "Hm.", "<|channel|>commentary to"),
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
