"""What SMB puts on the wire, as far as the library is too slow for it or does not know it. Pure.

Formats: MS-FSCC 2.4.18 (FileIdFullDirectoryInformation), 2.1.2.4 (symbolic link reparse data),
2.1.2.5 (mount points); times: 100 ns since 1601.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from syncer.remotes.errors import Garbled

ATTRIBUTE_DIRECTORY = 0x10
ATTRIBUTE_REPARSE_POINT = 0x400

TAG_SYMLINK = 0xA000000C
TAG_MOUNT_POINT = 0xA0000003
TAG_LX_SYMLINK = 0xA000001D  # written by WSL: a Unix symlink

_ENTRY = struct.Struct("<IIQQQQQQIIIIQ")
_EPOCH_TICKS = 116_444_736_000_000_000  # 1970 in 100 ns since 1601
_FORBIDDEN = frozenset('\\/:*?"<>|' + "".join(map(chr, range(32))))


@dataclass(frozen=True, slots=True)
class Found:
    """What the server says of one file. Times are 100 ns since 1601, 0: not known."""

    name: str
    accessed: int
    written: int
    size: int
    attributes: int
    tag: int = 0  # of its reparse point


def time_ns(ticks: int) -> int | None:
    """Nanoseconds since 1970, None where the server does not know."""
    return (ticks - _EPOCH_TICKS) * 100 if ticks else None


def time_ticks(ns: int) -> int:
    """100 ns since 1601; never the values that mean `leave it`."""
    return min(max(ns // 100 + _EPOCH_TICKS, 1), (1 << 63) - 2)


def parse_directory(buffer: bytes) -> Iterator[Found]:
    """The entries of one answer, `.` and `..` left out. Raises Garbled."""
    start = 0
    while True:
        if start + _ENTRY.size > len(buffer):
            raise Garbled("a directory entry is cut off")
        (after, _, _, accessed, written, _, size, _, attributes, length, tag, _, _) = (
            _ENTRY.unpack_from(buffer, start)
        )
        end = start + _ENTRY.size + length
        if length % 2 or end > len(buffer) or (after and after < end - start):
            raise Garbled("a directory entry has lengths that cannot be")
        name = buffer[start + _ENTRY.size : end].decode("utf-16-le", "surrogatepass")
        if name not in {".", ".."}:
            if not attributes & ATTRIBUTE_REPARSE_POINT:
                tag = 0  # the field is the size of extended attributes then
            yield Found(name, accessed, written, size, attributes, tag)
        if not after:
            return
        start += after


def parse_link(data: bytes) -> bytes | None:
    """The target in reparse data, with forward slashes; None where it is no link."""
    if len(data) < 8:
        raise Garbled("reparse data is cut off")
    tag, length = struct.unpack_from("<IH", data)
    body = data[8 : 8 + length]
    if tag == TAG_LX_SYMLINK:
        return body[4:] or None
    if tag not in {TAG_SYMLINK, TAG_MOUNT_POINT}:
        return None
    head = 12 if tag == TAG_SYMLINK else 8
    if len(body) != length or length < head:
        raise Garbled("reparse data is cut off")
    real, real_length, shown, shown_length = struct.unpack_from("<HHHH", body)
    # The name for people, without the NT prefix, where there is one.
    at, size = (shown, shown_length) if shown_length else (real, real_length)
    name = body[head + at : head + at + size]
    if len(name) != size or size % 2:
        raise Garbled("reparse data has lengths that cannot be")
    text = name.decode("utf-16-le", "surrogatepass").removeprefix("\\??\\")
    return encode_name(text.replace("\\", "/"))


def encode_name(name: str) -> bytes:
    """A name of the server as bytes: UTF-8; half a surrogate pair keeps its three bytes."""
    return name.encode("utf-8", "surrogatepass")


def decode_key(key: bytes) -> str | None:
    """The path with backslashes that `key` is; None where no file can have it."""
    bare = key.removesuffix(b"/")
    if not bare:
        return ""
    try:
        text = bare.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    names = text.split("/")
    # A backslash would be a separator, a colon a stream of the file, `..` its parent.
    if any(name in {"", ".", ".."} or not _FORBIDDEN.isdisjoint(name) for name in names):
        return None
    return "\\".join(names)


# Answers, by MS-SMB2 2.2.14 (CREATE), 2.2.16 (CLOSE), 2.2.20 (READ), 2.2.32 (IOCTL), 2.2.34 (QUERY
# DIRECTORY). Offsets count from the header, which has 64 bytes. The library would read times as
# datetimes, which have no 100 ns.

_CREATED = struct.Struct("<HBBIQQQQQQII16s")
_CLOSED = struct.Struct("<HHIQQQQQQI")
_READ = struct.Struct("<HBBI")
_QUERIED = struct.Struct("<HHI")
_CONTROLLED = struct.Struct("<HHI16sIIII")
_HEADER_BYTES = 64


def parse_created(answer: bytes) -> tuple[bytes, Found]:
    """The handle of an opened file, and the file without its name."""
    try:
        (_, _, _, _, _, accessed, written, _, _, size, attributes, _, handle) = (
            _CREATED.unpack_from(answer)
        )
    except struct.error:
        raise Garbled("an answer is cut off") from None
    return handle, Found("", accessed, written, size, attributes)


def parse_closed(answer: bytes) -> Found:
    """What a file was like when it was closed."""
    try:
        (_, _, _, _, accessed, written, _, _, size, attributes) = _CLOSED.unpack_from(answer)
    except struct.error:
        raise Garbled("an answer is cut off") from None
    return Found("", accessed, written, size, attributes)


def parse_read(answer: bytes) -> bytes:
    """The bytes that were read."""
    return _payload(answer, _READ, 1, 3)


def parse_queried(answer: bytes) -> bytes:
    """The buffer for `parse_directory`."""
    return _payload(answer, _QUERIED, 1, 2)


def parse_controlled(answer: bytes) -> bytes:
    """The output of an FSCTL."""
    return _payload(answer, _CONTROLLED, 6, 7)


def _payload(answer: bytes, head: struct.Struct, at: int, size: int) -> bytes:
    try:
        fields = head.unpack_from(answer)
    except struct.error:
        raise Garbled("an answer is cut off") from None
    start = fields[at] - _HEADER_BYTES
    data = answer[start : start + fields[size]] if start >= head.size else b""
    if len(data) != fields[size]:
        raise Garbled("an answer is shorter than it says")
    return data
