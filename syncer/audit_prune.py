"""Removing the oldest files of an audit chain, so that what is left can still be verified.

A file goes when its newest record is too old. A record of the chain (`audit.pruned`) says so, and
the sealed head names the last record that is gone, which the oldest one that is left is bound to:
both are durable before anything is removed. Blocks on the disk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from typing import Final, NamedTuple

from blockstore.disk import DiskFile
from syncer.audit_files import AuditFiles
from syncer.audit_records import PRUNED, ROTATED, AuditRecord, Link, fields_of, mac_in
from syncer.events import timestamp

DAY_NS: Final = 86_400 * 10**9
ROTATION_BYTES: Final = 1_024  # more than the record of a rotation has
_TAIL_BYTES: Final = 64 << 10  # more than two records have, but for the longest of paths
_FIRST: Final = re.compile(rb'\{"timestamp":"([^"]+)"')
_FILE: Final = re.compile(r"audit-([0-9]{12})\.log", re.ASCII)
_MAC: Final = "hmac-sha256:"


class Removal(NamedTuple):
    """What is to go."""

    names: list[str]  # oldest first
    start: Link  # the last record that is gone then


def plan_removal(files: AuditFiles, logs: Sequence[str], start: Link, cut: str) -> Removal:
    """Return which of the files are older than the timestamp `cut`, in one piece from the oldest.

    `start`: the last record that was removed before; a crash may have left its file.
    """
    names: list[str] = []
    for name in logs:
        ended = _end_of(files, name)
        if ended is None:
            break
        when, link = ended
        if link.sequence > start.sequence:
            if when >= cut:
                break
            start = link
        names.append(name)
    return Removal(names, start)


def _end_of(files: AuditFiles, name: str) -> tuple[str, Link] | None:
    """When the newest record of a file was made, and its last one; None: it was not rotated."""
    with closing(files.disk.open(files.folder / name)) as file:
        size = file.size()
        tail = file.pread(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
    before, last = tail.splitlines(keepends=True)[-2:]
    fields, mac = fields_of(last), mac_in(last)
    if fields is None or mac is None or fields["event"] != ROTATED:
        return None
    newest = fields_of(before) or fields  # cut off: it is that long
    return newest["timestamp"], Link(fields["sequence"], mac)


def pruned_record(removal: Removal, first_left: str) -> AuditRecord:
    """The record that says what was removed; `first_left` names the oldest file that stays."""
    return AuditRecord(
        PRUNED,
        source=removal.names[-1],
        destination=first_left,
        checksum=_MAC + removal.start.mac.hex(),
    )


def start_in(line: bytes) -> Link | None:
    """Return the last record that was removed, if a good record of the chain says so."""
    if b'"event":"%s"' % PRUNED.encode() not in line:
        return None
    fields = fields_of(line)
    assert fields is not None
    left = _FILE.fullmatch(fields["destination"])
    assert left is not None
    mac = bytes.fromhex(fields["checksum"].removeprefix(_MAC))
    return Link(int(left[1]) - 1, mac)


def is_old(file: DiskFile, now_ns: int) -> bool:
    """Whether a file's first record is more than a day old: it ends, so that its time can come."""
    found = _FIRST.match(file.pread(64, 0))
    return found is not None and found[1].decode() < timestamp(now_ns - DAY_NS)
