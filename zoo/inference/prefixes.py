"""What prompts have in common is read once: a tree of blocks of cached tokens.

A node of the tree is a block of tokens behind those of its parents, and has what the cache has
for them (RadixAttention, arXiv:2312.07104, with blocks of one size). Blocks are copied out of rows
and into rows: a table of pages would spare the copies, but each step would gather through it, which
costs more on CPU. What keeps one state for all tokens, a recurrence or a ring, can go on only from
where that state was kept; a node may have it or not.

Least recently used leaves go first, once the blocks take more bytes than they may.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import jax

BLOCK = 32
"""Tokens of a node."""


class _Node:
    """A block: `held` and `state` are pytrees of arrays, the state None where none was kept."""

    def __init__(self, parent: _Node | None, tokens: tuple[int, ...], held: Any):
        self.parent, self.tokens, self.held, self.state = parent, tokens, held, None
        self.children: dict[tuple[int, ...], _Node] = {}

    @property
    def bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.held, self.state)))


class Prefixes:
    """Blocks of tokens that were read, by the texts that they begin.

    Attributes:
        bytes: that the blocks occupy.
    """

    def __init__(self, limit: int, stateful: bool):
        """An empty tree.

        Args:
            limit: bytes that the blocks may occupy.
            stateful: a text can go on only from a block that has a state.
        """
        self.bytes = 0
        self._limit, self._stateful = limit, stateful
        self._roots: dict[int, _Node] = {}
        self._used: collections.OrderedDict[_Node, None] = collections.OrderedDict()

    def find(self, kind: int, text: Sequence[int]) -> list[tuple[Any, Any]]:
        """What is held of the blocks that a text begins with: `held` and `state` of each.

        At least one token of the text is left to be read, for its logits.

        Args:
            kind: texts of another kind have nothing in common with these.
            text: tokens.
        """
        path = list(self._walk(kind, text[: len(text) - 1]))
        while self._stateful and path and path[-1].state is None:
            path.pop()
        self._touch(path)
        return [(node.held, node.state) for node in path]

    def known(self, kind: int, text: Sequence[int]) -> int:
        """How many blocks that a text begins with are held, with a state or without."""
        return sum(1 for _ in self._walk(kind, text))

    def add(self, kind: int, text: Sequence[int], held: Any) -> bool:
        """Holds the last block of a text whose other blocks are held already; whether it fits."""
        path = list(self._walk(kind, text[:-BLOCK]))
        parent = path[-1] if path else self._roots.setdefault(kind, _Node(None, (), None))
        node = _Node(parent, tuple(text[-BLOCK:]), held)
        if node.bytes > self._limit:
            return False
        parent.children[node.tokens] = node
        self.bytes += node.bytes
        self._touch([*path, node])
        self._shrink()
        return node in self._used

    def add_state(self, kind: int, text: Sequence[int], state: Any) -> None:
        """Holds the state after a text whose blocks are held already."""
        path = list(self._walk(kind, text))
        self.bytes -= path[-1].bytes
        path[-1].state = state
        self.bytes += path[-1].bytes
        self._touch(path)
        self._shrink()

    def _walk(self, kind: int, text: Sequence[int]) -> Iterator[_Node]:
        node = self._roots.get(kind)
        for start in range(0, len(text) - BLOCK + 1, BLOCK):
            node = node and node.children.get(tuple(text[start : start + BLOCK]))
            if node is None:
                return
            yield node

    def _touch(self, path: list[_Node]) -> None:
        """Marks blocks as just used, children before parents: the oldest is a leaf always."""
        for node in reversed(path):
            self._used[node] = None
            self._used.move_to_end(node)

    def _shrink(self) -> None:
        while self.bytes > self._limit:
            node, _ = self._used.popitem(last=False)
            del node.parent.children[node.tokens]
            self.bytes -= node.bytes
