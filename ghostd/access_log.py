"""Which reads were made and what was fetched for them: one JSON line each, to learn from.

A thread writes; the loop only hands records over, and drops them when the thread cannot
keep up. A log beyond its size is moved aside once (`.1`), so that two files at most are there.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

import structlog

from ghostd.read_policy import AccessRecord

log = structlog.get_logger(__name__)

_PENDING_MAX: Final = 10_000
BYTES_MAX: Final = 256 << 20


class AccessLog:
    """Appends records to a file. `close` writes what is pending."""

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._pending: queue.Queue[AccessRecord | None] = queue.Queue(_PENDING_MAX)
        self.dropped = 0
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def add(self, record: AccessRecord) -> None:
        """Never waits."""
        try:
            self._pending.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is pending and end the thread; for seconds at most."""
        with suppress(queue.Full):
            self._pending.put(None, timeout=1)
        self._thread.join(5)

    def _write(self) -> None:
        try:
            while True:
                with self._path.open("a", encoding="utf-8") as file:
                    os.fchmod(file.fileno(), 0o600)
                    while file.tell() < self._bytes_max:
                        record = self._pending.get()
                        if record is None:
                            return
                        file.write(json.dumps(asdict(record)) + "\n")
                        if self._pending.empty():
                            file.flush()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
        except OSError as error:
            log.warning("accesses are not logged any more", path=str(self._path), error=str(error))
