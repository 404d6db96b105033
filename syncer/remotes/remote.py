"""The protocol that every remote speaks, and its values.

Keys are bytes, relative to the remote's root, with components separated by `/`, spelled as the
remote spells them. The key of a directory ends in `/`; the root's is empty. A name is the last
component of a key, without the `/`. Keys are data: nothing here gives `..` or `//` a meaning. A
remote whose root is a single file has that file under the empty key.

All methods are for the trio loop; bytes are received in other threads. Every method can be
cancelled and leaves no task, connection or half-written visible file behind. Each raises
`syncer.remotes.errors` and nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

ROOT = b""

Data = bytes | memoryview
"""Bytes that nobody changes any more. Copy what stays: a view keeps all that came with it."""


class Kind(enum.Enum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"  # devices, sockets, pipes: listed, never opened


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one state of a remote file from another.

    Two versions are the same state when size, etag and time are equal. A remote with etags pins
    reads by them; another by size and modification time, compared before or after the read.
    """

    size: int  # bytes
    etag: str = ""  # the remote's name for this state, as it spells it; "" where it has none
    mtime_ns: int = 0  # nanoseconds since 1970, as precise as the remote is; 0: unknown


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the remote says the whole file's bytes hash to."""

    algorithm: str  # a name that hashlib.new knows: md5, sha256, …
    digest: bytes


@dataclass(frozen=True, slots=True)
class Exact:
    """What an entry of our own store has besides: it is shown as it was."""

    format: int  # the type, as in st_mode
    rdev: int = 0  # devices
    ctime_ns: int | None = None  # nanoseconds since 1970
    btime_ns: int | None = None
    holes: int = 0  # bytes of a file that are holes
    link: bytes = b""  # equal for the names of one file; empty: it has one name
    nlink: int = 0  # how many names it has; 0: not known
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)  # ACLs among them


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or symlink. None: the remote does not know, or cannot tell."""

    key: bytes
    kind: Kind
    size: int = 0  # bytes; files
    mtime_ns: int | None = None  # nanoseconds since 1970
    atime_ns: int | None = None
    mode: int | None = None  # permission bits only
    uid: int | None = None
    gid: int | None = None
    target: bytes | None = None  # symlinks: as the remote has it, not followed
    etag: str = ""
    checksum: Checksum | None = None
    exact: bool = True  # False: the size is right, the time is a listing's: `stat` before reading
    metadata: Mapping[str, bytes] = field(default_factory=dict)  # user metadata, content-type
    as_was: Exact | None = None  # of snapshots in our own store

    @property
    def name(self) -> bytes:
        """The last component of the key; of the root: empty."""
        return self.key.removesuffix(b"/").rpartition(b"/")[2]

    @property
    def version(self) -> Version:
        """The state that this entry describes; by its size alone where it is not exact."""
        return Version(self.size, self.etag, (self.mtime_ns or 0) if self.exact else 0)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a remote has, and which attributes it keeps.

    What it lacks raises Unsupported when it is called.
    """

    ranges: bool = True  # reads any range; else only whole files
    write: bool = False
    write_if: bool = False  # `write` refuses atomically when the version is another one
    rename: bool = False  # atomic, or done by the server without moving bytes
    mkdir: bool = False  # directories exist by themselves; else by what is in them
    symlinks: bool = False
    mode: bool = False  # of listings and of set_attributes; likewise below
    owner: bool = False
    mtime_resolution_ns: int = 0  # 1: nanoseconds, 10**9: seconds, 0: not settable
    metadata: bool = False
    etag: bool = False  # reads are conditional at the server
    write_reason: str = ""  # why it cannot be written, for people


@dataclass(frozen=True, slots=True)
class Attributes:
    """What `set_attributes` or `write` is to set; None: leave it."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None
    metadata: Mapping[str, bytes] | None = None
    brief: bool = False
    """`write` need not find out the new file's time where that takes a request: it may be 0."""


class ByteSource(Protocol):
    """The bytes of a file to be written; may be read twice when a write is retried."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes."""


Page = Sequence[Entry]
PageSink = Callable[[Page], Awaitable[None]]


class Remote(Protocol):
    """A backend that holds files by path."""

    @property
    def url(self) -> str:
        """Where it is, for people and logs: no secrets."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; known without asking the server."""

    async def list(self, key: bytes, sink: PageSink) -> None:
        """Hand the entries of one directory to `sink`, page by page (up to about 1,000 each).

        Each entry once, in any order, the next page asked for when `sink` has taken the last one.
        The listing is complete when this returns; when it raises, what came is only a part. Raises
        Missing where there is no such directory, and Unsupported for what is no directory.
        """

    async def stat(self, key: bytes) -> Entry:
        """One entry, symlinks not followed.

        `key` as listed, or a file's key that turns out to be a directory: the entry has the right
        key and kind. Raises Missing.
        """

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> Data:
        """Exactly `length` bytes of this version, in one request where the protocol allows it.

        A view where copying megabytes under the interpreter's lock would hold up everybody else.
        Raises Changed when the file is of another version or gone, Garbled for what is short or
        long. A whole file with a checksum is verified.
        """

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """A file's entry and content in one request, as of one version.

        Raises Missing, Unsupported when it is larger than `size_max` bytes.
        """

    async def write(
        self,
        key: bytes,
        source: ByteSource,
        attributes: Attributes | None = None,
        *,
        if_version: Version | None = None,
        replace: bool = True,
    ) -> Entry:
        """Write a file whole: readers see the old one or the new one, in parts where large.

        Raises Exists (`replace` is false), Changed (`if_version` is not what is there), Full. Where
        the remote lacks `write_if` that is looked at just before. A parent directory that is
        missing is made. Attributes that the remote does not keep are left out. An error of the
        source passes through.
        """

    async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:
        """Move a file, or a directory where the remote has them. Raises Missing, Exists."""

    async def delete(self, key: bytes) -> None:
        """Remove a file, symlink or empty directory. Raises Missing, NotEmpty."""

    async def mkdir(self, key: bytes) -> None:
        """Make a directory; its parent is there. Raises Exists, Missing."""

    async def symlink(self, key: bytes, target: bytes) -> None:
        """Make a symlink. Raises Exists."""

    async def set_attributes(self, key: bytes, attributes: Attributes) -> None:
        """Set what is given. Raises Missing, Unsupported for what it does not keep."""

    async def close(self) -> None:
        """Give up connections; bounded in time also when the server is gone."""
