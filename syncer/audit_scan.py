"""Following the audit chain through a file: what is right, what a crash has cut, what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from blockstore.disk import DiskFile
from syncer.audit_records import TORN, Link, check_line, fields_of

_READ_BYTES: Final = 1 << 20
_LINE_BYTES_MAX: Final = 1 << 20  # what is longer is no record


class Bad(NamedTuple):
    """Bytes that are not the next record."""

    offset: int  # where they begin
    line: bytes  # the first line of them
    inserted: bool  # the record that should be there comes behind


def lines(file: DiskFile, offset: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) up to `end`; the last line may lack its newline."""
    rest = b""
    while offset + len(rest) < end:
        at = offset + len(rest)
        data = file.pread(min(_READ_BYTES, end - at), at)
        if not data:
            break
        parts = (rest + data).split(b"\n")
        rest = parts.pop()
        for part in parts:
            yield offset, part + b"\n"
            offset += len(part) + 1
        if len(rest) > _LINE_BYTES_MAX:
            yield offset, rest
            offset += len(rest)
            rest = b""
    if rest:
        yield offset, rest


def follow(
    key: bytes,
    file: DiskFile,
    offset: int,
    end: int,
    last: Link,
    see: Callable[[Link, bytes], None] | None = None,
) -> tuple[int, Link, Bad | None]:
    """Follow the chain; return the offset and link after its last good record, and what comes then.

    `see` is called with each good record. Bytes that a later record marks as torn are passed over.
    """
    good = offset
    bad: Bad | None = None
    region = hashlib.sha256()
    for at, line in lines(file, offset, end):
        found = check_line(key, last, line)
        if found is None:
            if bad is None:
                bad = Bad(at, line, inserted=False)
                region = hashlib.sha256()
            region.update(line)
            continue
        if bad is not None:
            if not _marks(line, at - bad.offset, region.hexdigest()):
                return good, last, bad._replace(inserted=True)
            bad = None
        last = found
        good = at + len(line)
        if see is not None:
            see(found, line)
    return good, last, bad


def _marks(line: bytes, length: int, digest: str) -> bool:
    """Whether a record says that the bytes before it were torn."""
    fields = fields_of(line)
    return (
        fields is not None
        and fields["event"] == TORN
        and fields["bytes"] == length
        and fields["checksum"] == f"sha256:{digest}"
    )
