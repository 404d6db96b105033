"""The hard-linked files of one run, by what a tree says they are: bounded in memory."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

import apsw

from syncer.tree_objects import Entry, decode_root, encode_root

_KEPT_MAX: Final = 50_000  # in memory, some 50 MB; others go to a scratch database


class Links:
    """What became of the first name of each file. For one thread."""

    def __init__(self) -> None:
        self._waiting: set[Hashable] = set()  # begun, not settled
        self._kept: dict[Hashable, Entry | None] = {}
        self._scratch: apsw.Connection | None = None

    def __contains__(self, link: Hashable) -> bool:
        return link in self._waiting or link in self._kept or self._spilled(link) is not None

    def begin(self, link: Hashable) -> None:
        """The first name of a file was met."""
        self._waiting.add(link)

    def settle(self, link: Hashable, entry: Entry | None) -> None:
        """The first name has become this entry; None: it could not be read."""
        self._waiting.discard(link)
        self._kept[link] = entry
        if len(self._kept) > _KEPT_MAX:
            self._spill()

    def get(self, link: Hashable) -> Entry | None:
        """Return the entry of the first name, which is settled; None: it could not be read."""
        if link in self._kept:
            return self._kept[link]
        data = self._spilled(link)
        return decode_root(data) if data else None

    def _spilled(self, link: Hashable) -> bytes | None:
        if self._scratch is None:
            return None
        row = self._scratch.execute(
            "SELECT entry FROM links WHERE link = ?", (repr(link),)
        ).fetchone()
        return None if row is None else row[0]

    def _spill(self) -> None:
        if self._scratch is None:
            # Its name is empty: a file that SQLite makes and removes by itself.
            self._scratch = apsw.Connection("")
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-16384"):
                self._scratch.execute(f"PRAGMA {pragma}").fetchall()
            self._scratch.execute(
                "CREATE TABLE links (link TEXT PRIMARY KEY, entry BLOB) WITHOUT ROWID"
            ).fetchall()
        with self._scratch:
            self._scratch.executemany(
                "INSERT OR REPLACE INTO links VALUES (?, ?)",
                (
                    (repr(link), b"" if entry is None else encode_root(entry))
                    for link, entry in self._kept.items()
                ),
            )
        self._kept.clear()
