"""The audit chain: one record for every operation that changed something. docs/jobs.md.

Records are lines of JSON; each carries an HMAC-SHA256 over itself and the one before. Methods are
for threads: they block on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class AuditRecord(NamedTuple):
    """What happened, for the chain. Sequence number, job and time are added by `append`."""

    event: str  # "copy", "delete", …: the step's kind or the operation in small letters
    source: str = ""  # without secrets
    destination: str = ""
    bytes: int = 0
    duration_ms: float = 0.0
    checksum: str = ""  # algorithm:hex
    compression: str = ""
    outcome: str = "done"  # or "failed: why"


class AuditLog:
    """An audit chain, open for appending. Several processes may have it open."""

    @classmethod
    def open(cls, folder: Path) -> AuditLog:
        """Open the chain of a state folder, or begin one (key file 0600).

        Raises AuditBroken when the key is missing though there are records, StorageFull,
        StorageFailed.
        """
        raise NotImplementedError

    def append(self, job: int, records: Iterable[AuditRecord]) -> int:
        """Append records of a job (0: of none), in order; return the last one's sequence number.

        Other processes see them; durable with the next `sync`.
        """
        raise NotImplementedError

    def sync(self) -> None:
        """Return when all appended records survive a power cut, and seal the head."""
        raise NotImplementedError

    def close(self) -> None:
        """Sync and close."""
        raise NotImplementedError
