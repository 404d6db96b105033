"""Merging an index's runs beside the work that adds to it."""

from __future__ import annotations

import threading

from blockstore.errors import StorageFailed, StorageFull
from blockstore.index import Index


class Merger:
    """Merges when there is something to merge: in a thread where the index has connections for it.

    Merging saves lookups; the index is whole without it. A failure is kept in `error`, and the next
    batch tries again.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.error: StorageFailed | StorageFull | None = None

    def start(self) -> None:
        """Merge unless that is under way or not needed."""
        if not self._index.wants_merge:
            return
        if self._index.single:
            self._index.merge()
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._merge, name="index-merge", daemon=True)
                self._thread.start()

    def join(self) -> None:
        """Wait until the thread is gone; a closed index ends it."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _merge(self) -> None:
        try:
            self._index.merge()
        except (StorageFailed, StorageFull) as error:
            self.error = error
