"""How many files the namespace holds, and how much: counted beside it, on a snapshot of it.

Nothing is kept up to date for this: the inodes are read through, 0.2 s for a million of them, by a
thread of its own when somebody asks and something was committed since the last time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import apsw

from blockstore.errors import OrbitError
from ghostd.namespace import Namespace

_REST: Final = 20  # times as long as the last count took

_COUNT: Final = (
    "SELECT count(*) FILTER (WHERE mode & 0xF000 != 0x4000 AND projection = 0),"
    " count(*) FILTER (WHERE mode & 0xF000 = 0x4000 AND projection = 0),"
    " count(*) FILTER (WHERE projection != 0),"
    " coalesce(sum(allocated), 0) FROM inodes WHERE nlink > 0 AND ino != 1"
)


class Totals(NamedTuple):
    """What the namespace held at one commit."""

    files: int  # everything but directories, projections left out
    directories: int  # below the root
    projected: int  # entries of projections that are known
    bytes: int  # written here: holes and what shows of a remote left out


class Census:
    """Counts in the background. For any thread."""

    def __init__(
        self, namespace: Namespace, epoch: Callable[[], int], *, rest: float = _REST
    ) -> None:
        self._namespace = namespace
        self._epoch = epoch  # of the last commit
        self._rest = rest
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: apsw.Connection | None = None
        self._closed = False
        self._totals: Totals | None = None
        self._counted = -1  # the epoch
        self._took_s = 0.0
        self._ended_s = 0.0

    def totals(self, patience_s: float) -> Totals | None:
        """The newest totals after waiting for a moment; None: nothing has been counted yet."""
        with self._lock:
            thread = self._thread
            if thread is None and self._is_due():
                thread = self._thread = threading.Thread(
                    target=self._count, name="census", daemon=True
                )
                thread.start()
        if thread is not None:
            thread.join(patience_s)
        return self._totals

    def close(self) -> None:
        """Stop counting; the namespace may be closed then."""
        with self._lock:
            self._closed = True
            thread = self._thread
            if self._connection is not None:
                self._connection.interrupt()
        if thread is not None:
            thread.join()

    def _is_due(self) -> bool:
        if self._closed or self._namespace.shared or self._counted == self._epoch():
            return False
        return time.monotonic() - self._ended_s >= self._rest * self._took_s

    def _count(self) -> None:
        began, epoch = time.monotonic(), self._epoch()
        with suppress(OrbitError, apsw.Error):  # whoever reads the tree will say what is wrong
            connection = self._namespace.snapshot()
            try:
                with self._lock:
                    self._connection = None if self._closed else connection
                if self._connection is not None:
                    row: tuple[Any, ...] = connection.execute(_COUNT).fetchall()[0]
                    self._totals = Totals(*row)
                    self._counted = epoch
            finally:
                with self._lock:
                    self._connection = None
                self._namespace.end_snapshot(connection)
        with self._lock:
            self._ended_s = time.monotonic()
            self._took_s = self._ended_s - began
            self._thread = None
