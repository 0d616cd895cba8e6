"""What a model thinks before it answers: told apart from the answer by the marks of its template.

A template shows the marks where it takes thoughts out of earlier answers or writes them back. It
may end a prompt with the first of them, so that the answer begins within the thought (DeepSeek R1),
or with both, so that there is none (Qwen3 with `enable_thinking` false).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from zoo.inference.text import Cut, Detokenizer

if TYPE_CHECKING:
    import tokenizers


class Marks(NamedTuple):
    """What a thought stands between.

    Attributes:
        open: what it begins with.
        close: what it ends with.
        then: what follows on `close`.
        final: what an answer to be shown begins with, if there was a thought or not.
        said: what a text to be shown begins with that ends as a thought does: more parts follow.
    """

    open: str
    close: str
    then: str = ""
    final: str = ""
    said: str = ""

    @property
    def shown(self) -> str:
        """Text in a chat template that tells them: templates may take thoughts out by their end."""
        return self.open if self.then else self.close


MARKS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant",
          "<|channel|>final<|message|>", "<|channel|>commentary<|message|>"),
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

    Attributes:
        thoughts: where they stand between their marks, in characters of the text: [start, end), and
            while one goes on, its end is infinite.
    """

    def __init__(self, how: Thinks):
        marks = self._marks = how.marks
        self._thought, self._text = _Trimmed(ends=True), _Trimmed(starts=False, ends=False)
        # What may come now: a mark that decides what the text is, until it is decided.
        self._awaited = () if how.opened else _known(marks.open, marks.said, marks.final)
        self._held, self._place = "", 0
        self.thoughts: list[tuple[int, float]] = []
        self._begin(marks.open if how.opened else None)

    @property
    def over(self) -> bool:
        """Whether no more of a thought can come."""
        return not self._awaited and self._cut is None

    def push(self, text: str) -> tuple[str, str]:
        """What is new of the thought and of the text."""
        thought = shown = ""
        while True:
            if self._awaited:
                self._held += text
                start = self._held.lstrip()
                mark = next((mark for mark in self._awaited if start.startswith(mark)), None)
                if mark is None and any(mark.startswith(start) for mark in self._awaited):
                    return thought, shown
                text = self._held if mark is None else start[len(mark) :]
                self._place += len(self._held) - len(text)
                self._awaited, self._held = (), ""
                self._begin(mark)
            part = text if self._cut is None else self._cut.push(text)
            self._place += len(part)
            if self._thinking:
                thought += self._thought.push(part)
            else:
                shown += self._text.push(part)
            if self._cut is None or self._cut.found is None:
                return thought, shown
            text = self._cut.behind
            self._end()

    def end(self) -> tuple[str, str]:
        """The rest of both."""
        if self._awaited:
            return "", self._held
        rest = "" if self._cut is None else self._cut.rest()
        return (self._thought.push(rest), "") if self._thinking else ("", self._text.push(rest))

    def _begin(self, mark: str | None) -> None:
        """A part begins by that mark, or by none: then it is text to the end."""
        marks, self._thinking = self._marks, mark == self._marks.open
        closed = mark is not None and mark != marks.final
        self._cut = Cut((marks.close + marks.then,)) if closed else None
        if self._thinking:
            self._thought.push("\n\n")  # between two of them, if this is not the first
            self.thoughts.append((self._place, math.inf))

    def _end(self) -> None:
        """A part has ended; another follows, or text."""
        marks = self._marks
        self._awaited = _known(marks.open, marks.said, marks.final) if marks.said else ()
        if self._thinking:
            self._text = _Trimmed(ends=False)
            self.thoughts[-1] = (self.thoughts[-1][0], self._place)
        self._place += len(marks.close + marks.then)
        self._begin(None)


class Counter:
    """Counts the tokens of an answer's thoughts, without those of the marks around them.

    A token that is of both, or that makes up a character with others, is one of the thought's.
    """

    def __init__(self, how: Thinks, tokenizer: tokenizers.Tokenizer, skip_special: bool):
        """Reads an answer of that tokenizer; `skip_special` as its text is made."""
        self._splitter, self._text = Splitter(how), Detokenizer(tokenizer, skip_special)
        self._ends = [0]  # of tokens, in characters of the text

    def push(self, tokens: Iterable[int]) -> None:
        """Goes on by token ids."""
        for token in tokens:
            if self._splitter.over:
                return
            text = self._text.push(token)
            self._ends.append(self._ends[-1] + len(text))
            self._splitter.push(text)

    @property
    def tokens(self) -> int:
        """Of thoughts, so far."""
        return sum(self._within(*thought) for thought in self._splitter.thoughts)

    def _within(self, start: int, end: float) -> int:
        """Tokens that have any of the text from `start` to `end`."""
        if start == end:
            return 0
        ends = self._ends
        first = bisect.bisect_left(ends, start)
        if first < len(ends) and ends[first] == start:
            first += 1  # that one ends where the thought begins
        last = min(bisect.bisect_left(ends, end), len(ends) - 1)
        return last - first + 1


def _known(*marks: str) -> tuple[str, ...]:
    return tuple(filter(None, marks))


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
