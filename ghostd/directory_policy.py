"""Which small files of a directory to fetch before they are opened. Pure.

Who opens several small files of a directory in order (as they are listed, or by name) will open the
next ones. A pattern follows one of the two orders: keep one for each, fed with the file's index in
its order. Parallel workers open neighbours in disorder, so a few places back or forth are still
order; anything else begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SEVERAL = 3  # files opened in order before others are fetched
FILES_MIN, FILES_MAX = 2, 64
BYTES_MAX = 16 << 20
BLOCK_BYTES = 1 << 20  # a file of at most one block is small
PLACES = 4


class DirectoryPattern(NamedTuple):
    """What is remembered of the files opened in one directory, in one order."""

    last: int = -1  # the furthest index opened
    opened: int = 0  # small files opened in order
    opened_bytes: int = 0
    window: int = 0  # files asked for at a time; 0: none yet
    ahead: int = 0  # files before this index were asked for or opened


@dataclass(frozen=True, slots=True)
class DirectoryPolicy:
    """How far to go: at most `files_max` files ahead, and about `bytes_max` bytes."""

    files_max: int = FILES_MAX
    bytes_max: int = BYTES_MAX
    small_bytes_max: int = BLOCK_BYTES

    def observe_open(
        self, pattern: DirectoryPattern, index: int, size: int
    ) -> tuple[DirectoryPattern, range]:
        """A file of `size` bytes, at `index` in the order, is opened (or read for the first time).

        What is to be remembered, and the indexes of the files to fetch. The range may reach past
        the last file, and over entries that are directories or not small: they are to be skipped.
        Sizes of files to come are not known here: bytes are estimated by the mean of those opened.
        """
        places = index - pattern.last
        ahead_of_all = max(pattern.ahead - pattern.last, 1) - 1 + PLACES
        if pattern.opened and -PLACES <= places <= 0:
            return pattern, range(0)  # opened again, or late
        if not 0 < places <= ahead_of_all:
            return self._anew(index, size), range(0)
        small = size <= self.small_bytes_max
        pattern = pattern._replace(
            last=index,
            opened=pattern.opened + small,
            opened_bytes=pattern.opened_bytes + (size if small else 0),
            ahead=max(pattern.ahead, index + 1),
        )
        if pattern.opened < SEVERAL:
            return pattern, range(0)
        left = pattern.ahead - index - 1
        if 2 * left >= max(pattern.window, 1):
            return pattern, range(0)
        mean = max(pattern.opened_bytes // pattern.opened, 1)
        window = min(
            max(2 * pattern.window, FILES_MIN),
            self.files_max,
            pattern.opened,
            max(self.bytes_max // mean, 1),
        )
        wanted = range(pattern.ahead, max(index + 1 + window, pattern.ahead))
        return pattern._replace(window=window, ahead=max(pattern.ahead, wanted.stop)), wanted

    def successor(self, pattern: DirectoryPattern) -> DirectoryPattern:
        """What to start with in the next directory of who has read this one in order.

        The first file opened there, when it is among the first, brings as many as were asked for at
        a time here: who copies a tree of small directories should not earn it in each.
        """
        if not pattern.window:
            return DirectoryPattern()
        return DirectoryPattern(-1, pattern.opened, pattern.opened_bytes, pattern.window // 2)

    def _anew(self, index: int, size: int) -> DirectoryPattern:
        small = size <= self.small_bytes_max
        return DirectoryPattern(index, int(small), size if small else 0, 0, index + 1)
