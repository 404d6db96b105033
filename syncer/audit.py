"""The audit chain: one record for every operation that changed something. docs/jobs.md.

Records are lines of JSON; each carries an HMAC-SHA256 over itself and the one before. Where the
chain stood when it was last synced is sealed in a file of its own, so that a cut shows. Methods are
for threads: they block on the disk.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from blockstore.disk import Disk, DiskFile, write_again
from blockstore.errors import OrbitError
from syncer.audit_files import AuditBroken, AuditFiles
from syncer.audit_prune import (
    DAY_NS,
    ROTATION_BYTES,
    is_old,
    plan_removal,
    pruned_record,
    start_in,
)
from syncer.audit_records import (
    BEGINNING,
    CONTINUED,
    GAP,
    ROTATED,
    AuditRecord,
    Head,
    Link,
    check_line,
    encode_record,
    fields_of,
    mac_in,
    torn_record,
)
from syncer.audit_scan import follow, lines
from syncer.events import timestamp

__all__ = ["AuditBroken", "AuditLog", "AuditRecord"]

FILE_BYTES_MAX: Final = 64 << 20  # about 200,000 records
_SEAL_S: Final = 1.0  # an append that comes later than this after the last seal makes a new one
_SEAL_RECORDS: Final = 10_000  # or with so many records since
_PRUNE_EVERY_S: Final = 3_600.0


class AuditLog:
    """An audit chain, open for appending. Several processes may have it open.

    Under the lock, and only there, it is brought up to what others have appended: the fields below
    say how far this process knows the chain.
    """

    def __init__(
        self,
        files: AuditFiles,
        key: bytes,
        file_bytes_max: int,
        keep_days: int,
        now_ns: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._files = files
        self._key = key
        self._keep_days = keep_days
        self._file_bytes_max = file_bytes_max
        self._now_ns = now_ns
        self._clock = clock
        self._sealed_at = clock()
        self._prune_at = self._sealed_at  # not before
        self._last = BEGINNING
        self._start = BEGINNING  # the last record of those that were removed
        self._name = ""
        self._file: DiskFile | None = None
        self._offset = 0  # of the end of the last record in the file
        self._sealed = BEGINNING
        self._sealed_start = BEGINNING
        self._sealed_offset = 0  # in the same file
        self._rotated = False  # the last record is the file's last one
        # An fsync has failed, here or in a process before: what was written since the seal may be
        # in memory only.
        self._suspect = True

    @classmethod
    def open(
        cls,
        folder: Path,
        disk: Disk | None = None,
        *,
        file_bytes_max: int = FILE_BYTES_MAX,
        keep_days: int = 0,
        now_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
    ) -> AuditLog:
        """Open the chain in `folder`, or begin one (key file 0600, made on first use).

        `keep_days`: files of older records are removed, here and when a file ends; 0: none are.
        Raises AuditBroken when the key is missing though there are records, StorageFull,
        StorageFailed.
        """
        files = AuditFiles(folder, disk)
        files.disk.mkdir(folder)
        with files.locked():
            log = cls(files, files.make_key(), file_bytes_max, keep_days, now_ns, clock)
            try:
                log._find_end()
                log._prune_now_and_then()
            except BaseException:
                log._close_file()
                raise
        return log

    # --- appending ------------------------------------------------------------------------------

    def append(self, job: int, records: Iterable[AuditRecord]) -> int:
        """Append records of a job (0: of none), in order; return the last one's sequence number.

        Other processes see them. Durable with the next `sync`, which an append does itself once a
        second or every 10,000 records. Raises StorageFull, StorageFailed.
        """
        with self._files.locked():
            self._catch_up()
            if self._offset >= self._file_bytes_max:
                self._rotate()
            self._prune_now_and_then()
            self._write(job, records)
            if (
                self._clock() - self._sealed_at >= _SEAL_S
                or self._last.sequence - self._sealed.sequence >= _SEAL_RECORDS
            ):
                self._make_durable()
            return self._last.sequence

    def _write(self, job: int, records: Iterable[AuditRecord], before: bytes = b"") -> None:
        now_ns = self._now_ns()
        last = self._last
        parts = [before]
        for record in records:
            line, last = encode_record(self._key, last, job, record, now_ns)
            parts.append(line)
        data = b"".join(parts)
        assert self._file is not None
        # A write that fails or is cut leaves a torn record, which `_catch_up` marks.
        self._file.pwritev([data], self._offset)
        self._last = last
        self._offset += len(data)

    def _rotate(self) -> None:
        """Go on in a new file, once the old one is durable with all that is in it."""
        self._write(0, [AuditRecord(ROTATED)])
        self._rotated = True
        self._make_durable()
        self._next_file()

    def _prune_now_and_then(self) -> None:
        if self._keep_days and self._clock() >= self._prune_at:
            self._prune_at = self._clock() + _PRUNE_EVERY_S
            with contextlib.suppress(OrbitError):  # nothing depends on it
                self._prune()

    def _prune(self) -> None:
        """Remove the files that are too old, once it is durable that they are."""
        assert self._file is not None
        now_ns = self._now_ns()
        if is_old(self._file, now_ns):
            self._rotate()
        logs = self._files.logs()
        others = logs[: logs.index(self._name)] if self._name in logs else []
        cut = timestamp(now_ns - self._keep_days * DAY_NS)
        removal = plan_removal(self._files, others, self._start, cut)
        if not removal.names:
            return
        if removal.start != self._start:
            self._write(0, [pruned_record(removal, logs[len(removal.names)])])
            self._start = removal.start
        self._make_durable()
        for name in removal.names:
            self._files.disk.unlink(self._files.folder / name)
        self._files.disk.fsync_dir(self._files.folder)

    def _next_file(self) -> None:
        """Begin the file that follows, unless another process or one before a crash has."""
        before, name = self._name, self._files.log_name(self._last.sequence + 1)
        path = self._files.folder / name
        if self._files.disk.exists(path):
            file = self._files.disk.open(path, writable=True)
        else:
            file = self._files.disk.open(path, create=True)
            self._files.disk.fsync_dir(self._files.folder)
        self._close_file()
        self._file, self._name, self._rotated = file, name, False
        self._offset = self._sealed_offset = 0
        if before and not file.size():
            head = f"hmac-sha256:{self._last.mac.hex()}"
            self._write(0, [AuditRecord(CONTINUED, source=before, checksum=head)])

    # --- where the chain ends -------------------------------------------------------------------

    def _find_end(self) -> None:
        """Find the end at first: from the sealed head on."""
        logs = self._files.logs()
        try:
            head = self._files.head(self._key)
        except FileNotFoundError:
            head = None
            if not logs:
                head = Head(BEGINNING, self._files.log_name(1), 0)
                self._files.seal(self._key, head)
        if head is None:
            self._resume_unsealed(logs)
            return
        self._last = self._sealed = head.link
        self._start = self._sealed_start = head.start
        path = self._files.folder / head.file
        if not self._files.disk.exists(path):
            if head.link.sequence:
                self._after_gap(f"{head.file} is missing")
            else:
                self._next_file()
            return
        self._name = head.file
        self._file = self._files.disk.open(path, writable=True)
        self._offset = self._sealed_offset = head.offset
        if not self._ends_with(head):
            self._after_gap(f"{head.file} is not as it was when its head was sealed")
            return
        self._catch_up()

    def _ends_with(self, head: Head) -> bool:
        """Whether the record of the sealed head is where it was."""
        assert self._file is not None
        if not head.link.sequence:
            return True
        start = max(0, head.offset - ROTATION_BYTES)
        found = self._file.pread(head.offset - start, start)
        if len(found) < head.offset - start or mac_in(found) != head.link.mac:
            return False
        self._rotated = _is_rotated(found[found.rfind(b"\n", 0, -1) + 1 :])
        return True

    def _after_gap(self, why: str) -> None:
        """Go on behind what is known though it is not there any more, and say so for ever."""
        if self._file is None:
            self._next_file()
        assert self._file is not None
        self._offset = self._file.size()
        self._rotated = False
        self._write(0, [AuditRecord(GAP, outcome=why)], before=b"\n" if self._offset else b"")

    def _resume_unsealed(self, logs: list[str]) -> None:
        """Go on behind the last line that looks like a record: the head is gone or forged."""
        for name in reversed(logs):
            file = self._files.disk.open(self._files.folder / name, writable=True)
            last = None
            for _, line in lines(file, 0, file.size()):
                mac, fields = mac_in(line), fields_of(line)
                if mac is not None and fields is not None:
                    last = Link(fields["sequence"], mac)
            if last is not None:
                self._file, self._name, self._last = file, name, last
                break
            file.close()
        self._after_gap("the sealed head was missing or changed")

    def _catch_up(self) -> None:
        """Follow what others have appended, and mark what a crash has cut."""
        if not self._files.disk.exists(self._files.folder / self._name):
            # It was too old for another process, which is far ahead: so are we now.
            self._close_file()
            self._suspect = True
            self._find_end()
            return
        while True:
            assert self._file is not None
            size = self._file.size()
            if size < self._offset:
                self._after_gap(f"{self._name} was cut while it was in use")
                return
            if size > self._offset:
                self._offset, self._last, bad = follow(
                    self._key, self._file, self._offset, size, self._last, self._see
                )
                if bad is not None:
                    self._mark_torn(size)
            if not self._rotated:
                return
            self._next_file()

    def _see(self, _: Link, line: bytes) -> None:
        self._rotated = _is_rotated(line)
        if (start := start_in(line)) is not None:
            self._start = start

    def _mark_torn(self, size: int) -> None:
        assert self._file is not None
        region = self._file.pread(size - self._offset, self._offset)
        newline = b"" if region.endswith(b"\n") else b"\n"
        whole = check_line(self._key, self._last, region + newline)
        if whole is not None:  # nothing but the newline was cut off
            self._file.pwritev([newline], size)
            self._offset, self._last = size + len(newline), whole
            self._see(whole, region + newline)
            return
        self._offset = size
        self._write(0, [torn_record(region + newline)], before=newline)

    # --- durability -----------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when all appended records survive a power cut and the head is sealed.

        Raises StorageFull, StorageFailed.
        """
        with self._files.locked():
            self._catch_up()
            self._make_durable()

    def _make_durable(self) -> None:
        if (self._sealed, self._sealed_start) == (self._last, self._start):
            return
        assert self._file is not None
        try:
            if self._suspect:
                write_again(self._file, self._sealed_offset, self._offset)
            else:
                self._file.fdatasync()
        except OrbitError:
            self._suspect = True
            raise
        self._files.seal(self._key, Head(self._last, self._name, self._offset, self._start))
        self._sealed, self._sealed_offset, self._suspect = self._last, self._offset, False
        self._sealed_start = self._start
        self._sealed_at = self._clock()

    def close(self) -> None:
        """Sync and close."""
        try:
            if self._file is not None:
                self.sync()
        finally:
            self._close_file()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OrbitError):
                file.close()


def _is_rotated(line: bytes) -> bool:
    return b'"event":"%s"' % ROTATED.encode() in line  # quotes within a value would be escaped
