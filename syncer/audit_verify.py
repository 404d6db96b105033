"""Checking, showing and exporting an audit chain. Nothing here changes it. Blocks on the disk."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from blockstore.disk import Disk
from syncer.audit_files import AuditBroken, AuditFiles
from syncer.audit_records import (
    BEGINNING,
    FIELDS,
    GAP,
    TORN,
    Head,
    Link,
    fields_of,
)
from syncer.audit_scan import Bad, follow, lines
from syncer.events import timestamp


@dataclass(frozen=True, slots=True)
class AuditProblem:
    """The first thing that is wrong with a chain."""

    kind: str  # changed, removed, inserted, truncated, torn, head or key
    sequence: int  # of the record that should have been there; 0: it is about no record
    file: str
    offset: int  # bytes
    message: str  # for people


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What verifying found."""

    records: int  # right ones, up to the problem
    pruned: int  # that came before them, and were removed because of their age
    torn: int  # cut by crashes, and marked as such
    problem: AuditProblem | None  # None: every record is there, unchanged and in order


@dataclass(slots=True)
class _Walk:
    """What has been seen of the chain so far."""

    sealed: Link
    last: Link = BEGINNING
    torn: int = 0
    gap: tuple[int, str] | None = None  # sequence and reason
    head_seen: bool = field(default=False)

    def see(self, link: Link, line: bytes) -> None:
        """Take note of a good record."""
        self.last = link
        if link == self.sealed:
            self.head_seen = True
        for event in (TORN, GAP):
            if b'"event":"%s"' % event.encode() in line:
                fields = fields_of(line)
                assert fields is not None
                if event == TORN:
                    self.torn += 1
                elif self.gap is None:
                    self.gap = (link.sequence, fields["outcome"])


def verify(folder: Path, disk: Disk | None = None) -> AuditReport:
    """Check the whole chain; others may go on appending. Raises StorageFailed.

    A folder without a chain is in order, and has no records.
    """
    files = AuditFiles(folder, disk)
    if not files.begun():
        return AuditReport(0, 0, 0, None)
    with files.locked():  # for what is complete now
        try:
            key = files.key()
        except AuditBroken as error:
            return AuditReport(0, 0, 0, AuditProblem("key", 0, "", 0, str(error)))
        try:
            head = files.head(key)
        except (FileNotFoundError, ValueError):
            head = None
        start = head.start if head is not None else BEGINNING
        first = files.log_name(start.sequence + 1)
        # A crash may have left files that were to be removed: they count no more.
        sizes = {name: _size(files, name) for name in files.logs() if name >= first}
    walk = _Walk(head.link if head is not None else BEGINNING, start)
    try:
        problem = _walk(files, key, sizes, walk, head)
    except FileNotFoundError:  # it has become too old just now, or the next look will say so
        return verify(folder, disk)
    if problem is None and head is None:
        problem = AuditProblem(
            "head", 0, "", 0, "the sealed head is missing or changed: records at the end may lack"
        )
    return AuditReport(walk.last.sequence - start.sequence, start.sequence, walk.torn, problem)


def _size(files: AuditFiles, name: str) -> int:
    file = files.disk.open(files.folder / name)
    try:
        return file.size()
    finally:
        file.close()


def _walk(
    files: AuditFiles, key: bytes, sizes: Mapping[str, int], walk: _Walk, head: Head | None
) -> AuditProblem | None:
    name = ""
    for name, size in sizes.items():
        expected = walk.last.sequence + 1
        if name > files.log_name(expected):
            text = f"the files before {name} are missing from record {expected} on"
            return AuditProblem("removed", expected, name, 0, text)
        file = files.disk.open(files.folder / name)
        try:
            good, _, bad = follow(key, file, 0, size, walk.last, walk.see)
        finally:
            file.close()
        if walk.gap is not None:
            sequence, why = walk.gap
            text = f"record {sequence} notes that something before it was missing: {why}"
            return AuditProblem("truncated", sequence, name, good, text)
        if bad is not None:
            return _judge(name, bad, walk, head)
    sequence = walk.last.sequence
    if head is not None and not walk.head_seen and head.link.sequence:
        if sequence < head.link.sequence:
            text = f"records {sequence + 1} to {head.link.sequence} were cut off"
            return AuditProblem("truncated", sequence + 1, name, sizes.get(name, 0), text)
        text = f"record {head.link.sequence} is not the one that was sealed"
        return AuditProblem("head", head.link.sequence, name, 0, text)
    return None


def _judge(name: str, bad: Bad, walk: _Walk, head: Head | None) -> AuditProblem:
    """Say what happened to the first record that is not right."""
    expected = walk.last.sequence + 1
    fields = fields_of(bad.line)
    where = f"{name}, byte {bad.offset}"
    if bad.inserted:
        kind, text = "inserted", f"something was inserted before record {expected}"
    elif fields is not None and fields["sequence"] > expected:
        last = fields["sequence"] - 1
        kind, text = "removed", f"records {expected} to {last} are missing"
    elif fields is not None and fields["sequence"] < expected:
        kind, text = "inserted", f"record {fields['sequence']} comes up again before {expected}"
    elif head is not None and expected > head.link.sequence:
        kind = "torn"
        text = f"record {expected} was cut by a crash; the next one that is appended will say so"
    elif not bad.line.endswith(b"\n"):
        kind, text = "truncated", f"the chain was cut off in record {expected}"
    else:
        kind, text = "changed", f"record {expected} was changed"
    return AuditProblem(kind, expected, name, bad.offset, f"{text} ({where})")


# --- showing -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which records are wanted; what is not given does not matter."""

    job: int | None = None
    since_ns: int | None = None  # nanoseconds since 1970; this time is in
    until_ns: int | None = None  # this one is not
    path: str = ""  # source or destination: this one, or what lies below it

    def matcher(self) -> Callable[[Mapping[str, Any]], bool]:
        """Return what tells whether a record's fields are wanted."""
        # Timestamps are of one length and in UTC: their order is that of the texts.
        since = "" if self.since_ns is None else timestamp(self.since_ns)
        until = "" if self.until_ns is None else timestamp(self.until_ns)
        below = self.path.rstrip("/") + "/"

        def matches(fields: Mapping[str, Any]) -> bool:
            if self.job is not None and fields["job"] != self.job:
                return False
            if fields["timestamp"] < since or (until and fields["timestamp"] >= until):
                return False
            return not self.path or any(
                fields[end] == self.path or fields[end].startswith(below)
                for end in ("source", "destination")
            )

        return matches


_ALL: Final = AuditFilter()


def show(
    folder: Path, wanted: AuditFilter = _ALL, disk: Disk | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the fields of records, oldest first, unverified.

    Lines that are no records are left out.
    """
    files = AuditFiles(folder, disk)
    matches = wanted.matcher()
    for name in files.logs():
        try:
            file = files.disk.open(files.folder / name)
        except FileNotFoundError:  # it has become too old just now
            continue
        with contextlib.closing(file):
            for _, line in lines(file, 0, file.size()):
                fields = fields_of(line)
                if fields is not None and matches(fields):
                    yield fields


def export(
    folder: Path,
    stream: TextIO,
    wanted: AuditFilter = _ALL,
    *,
    as_csv: bool = False,
    disk: Disk | None = None,
) -> int:
    """Write records as lines of JSON, or as CSV with a header; return how many."""
    count = 0
    table = csv.DictWriter(stream, FIELDS)
    if as_csv:
        table.writeheader()
    for fields in show(folder, wanted, disk):
        if as_csv:
            # What a file is called must not become a line or a formula of somebody's table.
            table.writerow({name: _cell(value) for name, value in fields.items()})
        else:
            stream.write(json.dumps(fields) + "\n")
        count += 1
    return count


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.encode("unicode_escape").decode() if not value.isprintable() else value
    return f"'{text}" if text[:1] in {"=", "+", "-", "@"} else text
