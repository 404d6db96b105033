"""The audit chain's files: where they are, the key, the sealed head, the lock between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from blockstore.disk import Disk, OsDisk, translated
from blockstore.errors import OrbitError
from syncer.audit_records import KEY_BYTES, Head, decode_head, encode_head

_KEY: Final = "audit.key"
_HEAD: Final = "audit.head"
_LOCK: Final = "audit.lock"
_LOG: Final = re.compile(r"audit-[0-9]{12}\.log", re.ASCII)
_HEAD_BYTES_MAX: Final = 4_096


class AuditBroken(OrbitError):
    """The chain cannot be continued or checked: its key is missing or is none."""


class AuditFiles:
    """The folder of one chain."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self.folder = folder
        self.disk = disk if disk is not None else OsDisk()
        self._shared = disk is None  # a simulated disk has one process
        self._thread_lock = threading.RLock()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes and threads from appending."""
        with self._thread_lock:
            if not self._shared:
                yield
                return
            path = self.folder / _LOCK
            with translated("locking", str(path)):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with translated("locking", str(path)):
                    fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)

    def log_name(self, first: int) -> str:
        """Return the name of the file whose first record has this sequence number."""
        return f"audit-{first:012}.log"

    def logs(self) -> list[str]:
        """Return the names of the files with records, oldest first."""
        try:
            names = self.disk.listdir(self.folder)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if _LOG.fullmatch(name))

    def begun(self) -> bool:
        """Whether there is a chain."""
        return bool(self.logs()) or self.disk.exists(self.folder / _HEAD)

    # --- key and head ---------------------------------------------------------------------------

    def key(self) -> bytes:
        """Return the key. Raises AuditBroken when it is missing or not a key."""
        try:
            key = self._read(_KEY, KEY_BYTES + 1)
        except FileNotFoundError:
            raise AuditBroken(
                f"the key of the audit trail, {self.folder / _KEY}, is missing: bring it back, or "
                f"move {self.folder} away to begin a new trail"
            ) from None
        if len(key) != KEY_BYTES:
            raise AuditBroken(
                f"{self.folder / _KEY} is not a key of {KEY_BYTES} bytes: bring the right one back"
            )
        return key

    def make_key(self) -> bytes:
        """Return the key, made where there is no chain yet. The caller has the lock."""
        if self.begun() or self.disk.exists(self.folder / _KEY):
            return self.key()
        key = secrets.token_bytes(KEY_BYTES)
        self._replace(_KEY, key)
        return key

    def head(self, key: bytes) -> Head | None:
        """Return the sealed head; None: its seal is broken. Raises FileNotFoundError."""
        return decode_head(key, self._read(_HEAD, _HEAD_BYTES_MAX))

    def seal(self, key: bytes, head: Head) -> None:
        """Replace the sealed head, atomically and durably."""
        self._replace(_HEAD, encode_head(key, head))

    def _read(self, name: str, length: int) -> bytes:
        file = self.disk.open(self.folder / name)
        try:
            return file.pread(length, 0)
        finally:
            file.close()

    def _replace(self, name: str, content: bytes) -> None:
        temporary = self.folder / f"{name}.new"
        with contextlib.suppress(FileNotFoundError):
            self.disk.unlink(temporary)
        file = self.disk.open(temporary, create=True)
        try:
            file.pwritev([content], 0)
            file.fdatasync()
        finally:
            file.close()
        self.disk.rename(temporary, self.folder / name)
        self.disk.fsync_dir(self.folder)
