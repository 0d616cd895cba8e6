"""What a model thinks before it answers: told apart from the answer by the marks of its template.

A template shows the marks where it takes thoughts out of earlier answers or writes them back. It
may end a prompt with the first of them, so that the answer begins within the thought (DeepSeek R1),
or with both, so that there is none (Qwen3 with `enable_thinking` false).
"""

from __future__ import annotations

from typing import NamedTuple

from zoo.inference.text import Cut


class Marks(NamedTuple):
    """What a thought stands between.

    Attributes:
        open: what it begins with.
        close: what it ends with.
        then: what follows on `close`.
        final: what an answer to be shown begins with, if there was a thought or not.
    """

    open: str
    close: str
    then: str = ""
    final: str = ""

    @property
    def shown(self) -> str:
        """Text in a chat template that tells them: templates may take thoughts out by their end."""
        return self.open if self.then else self.close


MARKS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant",
          "<|channel|>final<|message|>"),
)  # fmt: skip
"""Of DeepSeek, Qwen, Kimi, GLM, MiniMax and others; of Magistral; of Seed-OSS; of gpt-oss."""


class Thinks(NamedTuple):
    """How a model thinks in one answer: between `marks`, and from its beginning on if `opened`."""

    marks: Marks
    opened: bool


def marks_of(template: str) -> Marks | None:
    """The marks that a chat template shows; None if it shows none that are known."""
    return next((marks for marks in MARKS if marks.shown in template), None)


def thinks(marks: Marks | None, prompt: str) -> Thinks | None:
    """Whether and how an answer to a prompt can begin with a thought, told by the prompt's end."""
    end = prompt.rstrip()
    if marks is None or end.endswith(marks.close):
        return None
    return Thinks(marks, end.endswith(marks.open))


class Splitter:
    """Splits an answer, as it comes, into thought and text.

    Line breaks around the thought belong to neither: templates write their own.
    """

    def __init__(self, how: Thinks):
        self._marks = how.marks
        self._cut: Cut | None = Cut((how.marks.close + how.marks.then,)) if how.opened else None
        self._thought, self._text = _Trimmed(ends=True), _Trimmed(starts=False, ends=False)
        # What may come now: a mark that decides what the text is, until it is decided.
        self._awaited = () if how.opened else tuple(filter(None, (how.marks.open, how.marks.final)))
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """What is new of the thought and of the text."""
        if self._awaited:
            self._held += text
            start = self._held.lstrip()
            mark = next((mark for mark in self._awaited if start.startswith(mark)), None)
            if mark is None and any(mark.startswith(start) for mark in self._awaited):
                return "", ""
            self._awaited, text = (), self._held if mark is None else start[len(mark) :]
            if mark == self._marks.open:
                self._cut = Cut((self._marks.close + self._marks.then,))
        if self._cut is None:
            return "", self._text.push(text)
        thought = self._thought.push(self._cut.push(text))
        if self._cut.found is None:
            return thought, ""
        rest, self._cut, self._held = self._cut.behind, None, ""
        self._text = _Trimmed(ends=False)
        self._awaited = tuple(filter(None, (self._marks.final,)))
        return thought, self.push(rest)[1]

    def end(self) -> tuple[str, str]:
        """The rest of both."""
        if self._awaited:
            return "", self._held
        return ("" if self._cut is None else self._thought.push(self._cut.rest())), ""


class _Trimmed:
    """A text without the line breaks that it starts or ends with, as it comes."""

    def __init__(self, *, starts: bool = True, ends: bool):
        self._starts, self._ends, self._held = starts, ends, ""

    def push(self, text: str) -> str:
        text = self._held + text
        if self._starts:
            text = text.lstrip("\n")
            self._starts = not text
        whole = text.rstrip("\n") if self._ends else text
        self._held = text[len(whole) :]
        return whole
