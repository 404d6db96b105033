"""Rows changed since the last commit, laid over a table of the database. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Staged(Generic[K, V]):
    """One table's rows as they are now. A value of None says that there is no row."""

    def __init__(self, load: Callable[[K], V | None]) -> None:
        self._load = load
        self._now: dict[K, V | None] = {}
        self._frozen: dict[K, V | None] = {}

    def __len__(self) -> int:
        """How many rows the current epoch has changed."""
        return len(self._now)

    def get(self, key: K) -> V | None:
        """The row, from memory or from the database."""
        if key in self._now:
            return self._now[key]
        if key in self._frozen:
            return self._frozen[key]
        return self._load(key)

    def set(self, key: K, value: V | None) -> None:
        """The row is `value` from now on."""
        self._now[key] = value

    def freeze(self) -> list[tuple[K, V | None]]:
        """The barrier: what the current epoch changed, and a new epoch begins."""
        assert not self._frozen, "one commit at a time"
        self._frozen, self._now = self._now, {}
        return list(self._frozen.items())

    def committed(self) -> None:
        """What was frozen is in the database."""
        self._frozen = {}

    def thaw(self) -> None:
        """The commit failed: what was frozen belongs to the current epoch again."""
        self._now = self._frozen | self._now
        self._frozen = {}

    def changed(self) -> dict[K, V | None]:
        """Every row that the database does not show yet."""
        return self._frozen | self._now
