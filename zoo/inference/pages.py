"""Who holds which pages of a pooled cache: rows whose texts begin alike hold the same ones."""

from __future__ import annotations

from collections.abc import Iterable


class Pages:
    """The pages of some banks, by numbers from 0 on: page p is in bank p // each.

    Attributes:
        held: pages that anybody holds.
    """

    def __init__(self, banks: int, each: int):
        """Nobody holds any.

        Args:
            banks: of pages.
            each: pages of one, its first included, which stays empty and is nobody's.
        """
        self.held = 0
        self._each, self._holders = each, [0] * (banks * each)
        self._free = [list(range(b * each + each - 1, b * each, -1)) for b in range(banks)]

    def bank(self, page: int) -> int:
        """Where a page is."""
        return page // self._each

    def free(self, bank: int) -> int:
        """How many pages of a bank nobody holds."""
        return len(self._free[bank])

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def take(self, bank: int, count: int) -> list[int]:
        """So many free pages of a bank, each held once."""
        taken = [self._free[bank].pop() for _ in range(count)]
        self.hold(taken)
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """Holds pages once more each."""
        for page in pages:
            self.held += not self._holders[page]
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Holds pages once less each; those that nobody holds are free."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                self.held -= 1
                self._free[self.bank(page)].append(page)
