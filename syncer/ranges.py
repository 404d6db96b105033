"""Runs of bytes that are no holes, 16 bytes each: a file may have millions of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import overload


class Ranges(Sequence[tuple[int, int]]):
    """(offset, length), ascending."""

    __slots__ = ("_flat",)

    def __init__(self) -> None:
        self._flat = array("Q")

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> Ranges:
        """The inverse of `to_bytes`."""
        made = cls()
        made._flat.frombytes(data)
        return made

    def to_bytes(self) -> bytes:
        """Pairs of numbers of 8 bytes, as this machine has them."""
        return self._flat.tobytes()

    def add(self, offset: int, length: int) -> None:
        """One more, behind the others; joined with the last one where they touch."""
        flat = self._flat
        if flat and flat[-2] + flat[-1] == offset:
            flat[-1] += length
        else:
            flat.append(offset)
            flat.append(length)

    def __len__(self) -> int:
        return len(self._flat) // 2

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, int]]: ...

    def __getitem__(self, index: int | slice) -> tuple[int, int] | list[tuple[int, int]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self._flat[2 * number], self._flat[2 * number + 1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        values = iter(self._flat)
        return zip(values, values, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        return f"Ranges({list(self)!r})"
