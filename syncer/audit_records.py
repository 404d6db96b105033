"""The audit chain's records: lines of JSON, each bound to the one before. Pure.

A line is a JSON object whose last member is `mac`: HMAC-SHA256, under the chain's key, of the
previous record's MAC (32 zero bytes for the first) and the line's bytes up to `,"mac"`. Docs:
docs/jobs.md.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from json.encoder import encode_basestring_ascii
from typing import Any, Final, NamedTuple

from syncer.events import timestamp

GENESIS: Final = bytes(32)
KEY_BYTES: Final = 32
FIELDS: Final = (
    "timestamp",
    "event",
    "source",
    "destination",
    "bytes",
    "duration_ms",
    "checksum",
    "compression",
    "sequence",
    "job",
    "outcome",
)
TORN: Final = "audit.torn"  # what lies before it was cut by a crash
GAP: Final = "audit.gap"  # records, or the sealed head, were missing when the chain was opened
ROTATED: Final = "audit.rotated"  # the last record of a file
CONTINUED: Final = "audit.continued"  # the first one of the next file
PRUNED: Final = "audit.pruned"  # the oldest files were removed: they were too old
_MARK: Final = b',"mac":"'
_TAIL_BYTES: Final = len(_MARK) + 64 + len(b'"}')
_DUMPS: Final = json.JSONEncoder(separators=(",", ":")).encode  # ASCII: any path has an escape
_TEXT: Final = encode_basestring_ascii  # likewise


class AuditRecord(NamedTuple):
    """What happened, for the chain. Sequence number and job are added by `append`."""

    event: str  # as in syncer/events.py: "file.copied", "name.deleted", …
    source: str = ""  # without secrets
    destination: str = ""
    bytes: int = 0
    duration_ms: float = 0.0
    checksum: str = ""  # algorithm:hex
    compression: str = ""
    outcome: str = "done"  # or "failed: why"
    time_ns: int = 0  # since 1970; 0: now


class Link(NamedTuple):
    """Where a chain stands: its last record."""

    sequence: int
    mac: bytes


BEGINNING: Final = Link(0, GENESIS)


def mac_of(key: bytes, previous: bytes, body: bytes) -> bytes:
    """Return the MAC of a record after the one with the MAC `previous`."""
    return hmac.digest(key, previous + body, "sha256")


def encode_record(
    key: bytes, last: Link, job: int, record: AuditRecord, now_ns: int
) -> tuple[bytes, Link]:
    """Return the line of the next record, with its newline, and where the chain stands then."""
    sequence = last.sequence + 1
    event, source, destination, count, duration_ms, checksum, compression, outcome, time_ns = record
    # As `_DUMPS` has it, in a quarter of the time: there is a record for each file.
    body = (
        f'{{"timestamp":"{timestamp(time_ns or now_ns)}","event":{_TEXT(event)},'
        f'"source":{_TEXT(source)},"destination":{_TEXT(destination)},"bytes":{count},'
        f'"duration_ms":{round(duration_ms, 3)!r},"checksum":{_TEXT(checksum)},'
        f'"compression":{_TEXT(compression)},"sequence":{sequence},"job":{job},'
        f'"outcome":{_TEXT(outcome)}'
    ).encode()
    mac = mac_of(key, last.mac, body)
    return b'%s%s%s"}\n' % (body, _MARK, mac.hex().encode()), Link(sequence, mac)


def torn_record(region: bytes) -> AuditRecord:
    """Return the record that marks the bytes before it as cut by a crash."""
    return AuditRecord(
        TORN,
        bytes=len(region),
        checksum=f"sha256:{hashlib.sha256(region).hexdigest()}",
        outcome="a crash cut the record before this one",
    )


def fields_of(line: bytes) -> dict[str, Any] | None:
    """Return the fields of a line, without looking at its MAC; None: it is no record."""
    body = line[: -_TAIL_BYTES - 1] if line.endswith(b"\n") else line[:-_TAIL_BYTES]
    try:
        fields = json.loads(body + b"}")
    except ValueError:
        return None
    if not isinstance(fields, dict) or tuple(fields) != FIELDS:
        return None
    return fields if type(fields["sequence"]) is int else None


def check_line(key: bytes, last: Link, line: bytes) -> Link | None:
    """Return where the chain stands after this line; None: it is not the next record."""
    if len(line) <= _TAIL_BYTES + 1 or not line.endswith(b'"}\n'):
        return None
    body = line[: -_TAIL_BYTES - 1]
    mac = mac_of(key, last.mac, body)
    if not hmac.compare_digest(line[-_TAIL_BYTES - 1 :], b'%s%s"}\n' % (_MARK, mac.hex().encode())):
        return None
    return Link(last.sequence + 1, mac)


def mac_in(line: bytes) -> bytes | None:
    """Return the MAC that a line claims to have."""
    tail = line[-_TAIL_BYTES - 1 :]
    if len(tail) != _TAIL_BYTES + 1 or not tail.startswith(_MARK) or not tail.endswith(b'"}\n'):
        return None
    try:
        return bytes.fromhex(tail[len(_MARK) : -3].decode())
    except ValueError:
        return None


class Head(NamedTuple):
    """Where the chain stood when it was last durable."""

    link: Link
    file: str  # that the record lies in
    offset: int  # bytes in it, to the record's end
    start: Link = BEGINNING  # the last record of those that were removed because of their age


def encode_head(key: bytes, head: Head) -> bytes:
    """Return the content of the head's file: one line, sealed."""
    fields: dict[str, object] = {
        "sequence": head.link.sequence,
        "mac": head.link.mac.hex(),
        "file": head.file,
        "offset": head.offset,
    }
    if head.start.sequence:
        fields |= {"start": head.start.sequence, "start_mac": head.start.mac.hex()}
    body = _DUMPS(fields)
    seal = mac_of(key, b"head", body.encode()).hex()
    return f"{body}\n{seal}\n".encode()


def decode_head(key: bytes, content: bytes) -> Head | None:
    """Return the head; None: its seal is broken."""
    body, _, seal = content.partition(b"\n")
    if not hmac.compare_digest(seal, mac_of(key, b"head", body).hex().encode() + b"\n"):
        return None
    fields = json.loads(body)
    link = Link(fields["sequence"], bytes.fromhex(fields["mac"]))
    start = BEGINNING
    if "start" in fields:
        start = Link(fields["start"], bytes.fromhex(fields["start_mac"]))
    return Head(link, fields["file"], fields["offset"], start)
