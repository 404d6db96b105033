"""Packets of SFTP version 3 (draft-ietf-secsh-filexfer-02) and OpenSSH's extensions. Pure."""

from __future__ import annotations

import enum
import stat
import struct
from dataclasses import dataclass
from typing import Self

from syncer.remotes.errors import (
    Denied,
    Exists,
    Full,
    Garbled,
    Missing,
    NotEmpty,
    RemoteError,
    Unsupported,
)
from syncer.remotes.remote import Entry, Kind

VERSION_3 = 3
PACKET_BYTES_MAX = 1 << 20  # of an answer; OpenSSH's are 256 KiB at most
NS = 10**9


class Packet(enum.IntEnum):
    """Types of packets."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Code(enum.IntEnum):
    """What a STATUS says. From 11 on: of later versions, which some servers say all the same."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8
    NO_SUCH_PATH = 10
    FILE_ALREADY_EXISTS = 11
    WRITE_PROTECT = 12
    NO_SPACE = 14
    QUOTA_EXCEEDED = 15
    DIR_NOT_EMPTY = 18
    NOT_A_DIRECTORY = 19


# Flags of OPEN.
READ_FLAG = 1
WRITE_FLAG = 2
CREATE_FLAG = 8
EXCLUSIVE_FLAG = 32

POSIX_RENAME = b"posix-rename@openssh.com"
FSYNC = b"fsync@openssh.com"
LIMITS = b"limits@openssh.com"
LSETSTAT = b"lsetstat@openssh.com"
STATVFS = b"statvfs@openssh.com"

_SIZE, _OWNER, _MODE, _TIMES, _EXTENDED = 1, 2, 4, 8, 0x80000000

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
}


class Status(Exception):
    """The server refused a request. Never leaves the driver."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message or 'no reason given'} ({code})")
        self.code = code


_MEANINGS: dict[int, type[RemoteError]] = {
    Code.NO_SUCH_FILE: Missing,
    Code.NO_SUCH_PATH: Missing,
    Code.NOT_A_DIRECTORY: Missing,
    Code.PERMISSION_DENIED: Denied,
    Code.WRITE_PROTECT: Denied,
    Code.OP_UNSUPPORTED: Unsupported,
    Code.BAD_MESSAGE: Unsupported,  # OpenSSH's for names that are too long
    Code.FILE_ALREADY_EXISTS: Exists,
    Code.NO_SPACE: Full,
    Code.QUOTA_EXCEEDED: Full,
    Code.DIR_NOT_EMPTY: NotEmpty,
}


def meaning(status: Status, where: str, otherwise: type[RemoteError] = Unsupported) -> RemoteError:
    """The error for a refusal; `otherwise`: for one without a reason."""
    return _MEANINGS.get(status.code, otherwise)(f"{where}: the server says: {status}")


def u32(value: int) -> bytes:
    """A number."""
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    """A long number."""
    return struct.pack(">Q", value)


def string(data: bytes) -> bytes:
    """Bytes with their length."""
    return struct.pack(">I", len(data)) + data


class Fields:
    """Takes a packet apart. Raises Garbled where it is too short."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = memoryview(data)
        self._at = at

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def _take(self, length: int) -> memoryview:
        end = self._at + length
        if end > len(self._data):
            raise Garbled("sftp: a packet is shorter than it says")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def u32(self) -> int:
        """A number."""
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        """A long number."""
        return int.from_bytes(self._take(8), "big")

    def view(self) -> memoryview:
        """Bytes with their length, valid as long as the packet."""
        return self._take(self.u32())

    def string(self) -> bytes:
        """Bytes with their length."""
        return bytes(self.view())

    def rest(self) -> bytes:
        """All that is left."""
        return bytes(self._take(len(self._data) - self._at))


@dataclass(frozen=True, slots=True)
class Attrs:
    """ATTRS: what the server knows of a file, or what is to be set."""

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None  # with the file's type
    atime: int | None = None  # seconds since 1970
    mtime: int | None = None

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """Of a packet."""
        flags = fields.u32()
        size = fields.u64() if flags & _SIZE else None
        uid, gid = (fields.u32(), fields.u32()) if flags & _OWNER else (None, None)
        mode = fields.u32() if flags & _MODE else None
        atime, mtime = (fields.u32(), fields.u32()) if flags & _TIMES else (None, None)
        if flags & _EXTENDED:
            for _ in range(2 * fields.u32()):
                fields.view()
        return cls(size, uid, gid, mode, atime, mtime)

    def encode(self) -> bytes:
        """For a packet. Owners and times come in pairs. Raises Unsupported for what has no room."""
        flags, parts = 0, []
        if self.size is not None:
            flags |= _SIZE
            parts.append(u64(self.size))
        if self.uid is not None and self.gid is not None:
            flags |= _OWNER
            parts += [u32(self.uid), u32(self.gid)]
        if self.mode is not None:
            flags |= _MODE
            parts.append(u32(self.mode))
        if self.atime is not None and self.mtime is not None:
            if not (0 <= self.atime < 1 << 32 and 0 <= self.mtime < 1 << 32):
                raise Unsupported("SFTP has only times from 1970 to 2106")
            flags |= _TIMES
            parts += [u32(self.atime), u32(self.mtime)]
        return u32(flags) + b"".join(parts)

    @property
    def kind(self) -> Kind:
        """What it is; a file where the server does not say."""
        if self.mode is None or not stat.S_IFMT(self.mode):
            return Kind.FILE
        return _KINDS.get(stat.S_IFMT(self.mode), Kind.OTHER)

    def entry(self, key: bytes, target: bytes | None = None) -> Entry:
        """As remotes say it."""
        bare, kind = key.removesuffix(b"/"), self.kind
        return Entry(
            bare + b"/" if kind is Kind.DIRECTORY and bare else bare,
            kind,
            size=(self.size or 0) if kind is Kind.FILE else 0,
            mtime_ns=None if self.mtime is None else self.mtime * NS,
            atime_ns=None if self.atime is None else self.atime * NS,
            mode=None if self.mode is None else stat.S_IMODE(self.mode),
            uid=self.uid,
            gid=self.gid,
            target=target,
        )


@dataclass(frozen=True, slots=True)
class Name:
    """One of NAME."""

    name: bytes
    attrs: Attrs


def take_names(body: bytes) -> list[Name]:
    """The names of a NAME packet, as they come."""
    fields, names = Fields(body), []
    for _ in range(fields.u32()):
        name, long_name = fields.string(), fields.view()
        attrs = Attrs.take(fields)
        if attrs.mode is None:  # then the line of `ls -l` tells what it is
            kinds = {b"d": stat.S_IFDIR, b"l": stat.S_IFLNK, b"-": stat.S_IFREG}
            kind = kinds.get(bytes(long_name[:1]), 0)
            attrs = Attrs(attrs.size, attrs.uid, attrs.gid, kind or None, attrs.atime, attrs.mtime)
        names.append(Name(name, attrs))
    return names


def take_status(fields: Fields) -> Status | None:
    """What a STATUS packet says; None for OK."""
    code = fields.u32()
    message = fields.string().decode(errors="replace") if fields else ""
    return None if code == Code.OK else Status(code, message)
