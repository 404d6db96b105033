"""Guesses the handle that an SFTP server is about to give. Pure.

A file can be read only by its handle, which OPEN gives: two round trips. OpenSSH's server numbers
its handles: the one that was closed last is used again, else there is a new number. It works on
one request at a time, so that the next number is known when OPEN is sent, and READ can go with it.
A guess is only good for requests that change nothing, and must be compared with the true handle
before anything of their answers is believed. It may miss only while the answer to a failed OPEN
is on its way, and is then a handle that is not in use.
"""

from __future__ import annotations

from collections import deque

_OPEN = -1


class HandleGuess:
    """What the server's table of handles looks like, now and after what is under way."""

    def __init__(self, *, numbered: bool) -> None:
        """`numbered`: the server is known to number its handles; else nothing is guessed."""
        self._guessing = numbered
        self._under_way: deque[int] = deque()  # _OPEN, or the number that is being closed
        # After the answers that are here, and after all that has been sent: numbers given back,
        # the last on top, and how many have ever been in use.
        self._true: tuple[list[int], int] = ([], 0)
        self._ahead: tuple[list[int], int] = ([], 0)

    def opening(self) -> bytes | None:
        """OPEN or OPENDIR is being sent: the handle it will probably give."""
        if not self._guessing:
            return None
        self._under_way.append(_OPEN)
        number, self._ahead = _opened(self._ahead)
        return number.to_bytes(4, "big")

    def closing(self, handle: bytes) -> None:
        """CLOSE is being sent."""
        if self._guessing:
            number = int.from_bytes(handle, "big")
            self._under_way.append(number)
            self._ahead = _closed(self._ahead, number)

    def opened(self, handle: bytes | None) -> None:
        """The answer to the oldest OPEN: a handle, or an error."""
        if not self._guessing:
            return
        if not self._under_way or self._under_way.popleft() != _OPEN:
            self._guessing = False  # answers out of turn
        elif handle is None:
            self._foresee()
        else:
            number, self._true = _opened(self._true)
            self._guessing = number.to_bytes(4, "big") == handle

    def closed(self) -> None:
        """The answer to the oldest CLOSE."""
        if not self._guessing:
            return
        number = self._under_way.popleft() if self._under_way else _OPEN
        if number == _OPEN:
            self._guessing = False
        else:
            self._true = _closed(self._true, number)

    def _foresee(self) -> None:
        """Think again what is under way, for something did not happen."""
        self._ahead = (list(self._true[0]), self._true[1])
        for number in self._under_way:
            if number == _OPEN:
                self._ahead = _opened(self._ahead)[1]
            else:
                self._ahead = _closed(self._ahead, number)


def _opened(table: tuple[list[int], int]) -> tuple[int, tuple[list[int], int]]:
    free, count = table
    return (free.pop(), table) if free else (count, (free, count + 1))


def _closed(table: tuple[list[int], int], number: int) -> tuple[list[int], int]:
    table[0].append(number)
    return table
