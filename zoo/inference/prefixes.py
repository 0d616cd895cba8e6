"""What prompts have in common is read once: a tree of pages of cached tokens.

A node of the tree is a page of tokens behind those of its parents (RadixAttention,
arXiv:2312.07104, with nodes of one size). It holds the page that some row read them into, and rows
that begin alike hold the same. What keeps one state for all tokens, a recurrence or a ring, can go
on only from where that state was kept; a node may have it or not.

Least recently used leaves go first, once the tree takes more bytes than it may, or rows need pages.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from zoo.cache import PAGE
from zoo.inference.pages import Pages


class _Node:
    """A page of tokens; `state` is a pytree of arrays, or None where none was kept."""

    def __init__(self, parent: _Node | None, tokens: tuple[int, ...], page: int):
        self.parent, self.tokens, self.page, self.state = parent, tokens, page, None
        self.children: dict[tuple[int, ...], _Node] = {}


class Prefixes:
    """Pages of tokens that were read, by the texts that they begin.

    Texts of one kind have their pages in one bank, and nothing in common with those of another.

    Attributes:
        bytes: that the pages and states occupy.
    """

    def __init__(self, limit: int, pages: Pages, page_bytes: int, stateful: bool):
        """An empty tree.

        Args:
            limit: bytes that pages and states may occupy.
            pages: who holds them.
            page_bytes: of each.
            stateful: a text can go on only from a page that has a state.
        """
        self.bytes = 0
        self._limit, self._stateful = limit, stateful
        self._pages, self._page_bytes = pages, page_bytes
        self._roots: dict[Any, _Node] = {}
        self._used: collections.OrderedDict[_Node, None] = collections.OrderedDict()

    def find(self, kind: Any, text: Sequence[int]) -> list[tuple[int, Any]]:
        """The pages that a text begins with, each with its state or None.

        At least one token of the text is left to be read, for its logits.

        Args:
            kind: of the text.
            text: tokens.
        """
        path = self._path(kind, text)
        self._touch(path)
        return [(node.page, node.state) for node in path]

    def count(self, kind: Any, text: Sequence[int]) -> int:
        """How many pages `find` would give; they do not count as used by it."""
        return len(self._path(kind, text))

    def known(self, kind: Any, text: Sequence[int]) -> int:
        """How many pages that a text begins with are held, with a state or without."""
        return sum(1 for _ in self._walk(kind, text))

    def add(self, kind: Any, text: Sequence[int], page: int) -> bool:
        """Holds the last page of a text whose other pages are held already; whether it fits."""
        path = list(self._walk(kind, text[:-PAGE]))
        parent = path[-1] if path else self._roots.setdefault(kind, _Node(None, (), 0))
        node = _Node(parent, tuple(text[-PAGE:]), page)
        if self._bytes_of(node) > self._limit:
            return False
        parent.children[node.tokens] = node
        self._pages.hold([page])
        self.bytes += self._bytes_of(node)
        self._touch([*path, node])
        self._shrink()
        return node in self._used

    def add_state(self, kind: Any, text: Sequence[int], state: Any) -> None:
        """Holds the state after a text whose pages are held already."""
        path = list(self._walk(kind, text))
        self.bytes -= self._bytes_of(path[-1])
        path[-1].state = state
        self.bytes += self._bytes_of(path[-1])
        self._touch(path)
        self._shrink()

    def loose(self, bank: int) -> int:
        """How many pages of a bank nobody else holds, nor any page behind them."""
        return len(self._loose(bank))

    def make_room(self, bank: int, count: int) -> bool:
        """Whether so many pages of a bank are free, once those that only the tree holds have gone;
        none goes for less."""
        short = count - self._pages.free(bank)
        if short <= 0:
            return True
        loose = self._loose(bank)
        if len(loose) < short:
            return False
        for node in loose[:short]:
            self._drop(node)
        return True

    def clear(self) -> None:
        """Drops everything."""
        for node in list(self._used):
            self._drop(node)

    def _loose(self, bank: int) -> list[_Node]:
        """Least recently used first, and children before their parents, as in `_used`."""
        found: dict[_Node, None] = {}
        for node in self._used:
            mine = self._pages.bank(node.page) == bank and self._pages.holders(node.page) == 1
            if mine and all(child in found for child in node.children.values()):
                found[node] = None
        return list(found)

    def _path(self, kind: Any, text: Sequence[int]) -> list[_Node]:
        path = list(self._walk(kind, text[: len(text) - 1]))
        while self._stateful and path and path[-1].state is None:
            path.pop()
        return path

    def _walk(self, kind: Any, text: Sequence[int]) -> Iterator[_Node]:
        node = self._roots.get(kind)
        for start in range(0, len(text) - PAGE + 1, PAGE):
            node = node and node.children.get(tuple(text[start : start + PAGE]))
            if node is None:
                return
            yield node

    def _touch(self, path: list[_Node]) -> None:
        """Marks pages as just used, children before parents: the oldest is a leaf always."""
        for node in reversed(path):
            self._used[node] = None
            self._used.move_to_end(node)

    def _shrink(self) -> None:
        while self.bytes > self._limit:
            self._drop(next(iter(self._used)))

    def _drop(self, node: _Node) -> None:
        del self._used[node], node.parent.children[node.tokens]
        self.bytes -= self._bytes_of(node)
        self._pages.release([node.page])

    def _bytes_of(self, node: _Node) -> int:
        return self._page_bytes + sum(leaf.nbytes for leaf in jax.tree.leaves(node.state))
