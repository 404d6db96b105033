"""The protocol that every tree speaks to the syncer, and its values.

A tree is what a job reads from or writes to: a local folder, a remote, a snapshot, the namespace.
Paths are bytes, relative to the tree's root, components joined by `/`; the root's is empty. Unlike
the keys of remotes they never end in `/`. Names are data: `.`, `..`, NUL and `/` never occur in
one, a tree leaves such entries out and says so.

All methods are for the trio loop; bytes move in other threads. Every method can be cancelled.
Each raises `syncer.remotes.errors` and nothing else, whatever kind of tree it is.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, runtime_checkable

from syncer.remotes.errors import RemoteError
from syncer.remotes.remote import Checksum

ROOT: Final = b""


class NodeKind(enum.Enum):
    """What a node is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER = "character device"
    BLOCK = "block device"


KIND_OF_FORMAT: Final = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER,
    stat.S_IFBLK: NodeKind.BLOCK,
}
FORMAT_OF_KIND: Final = {kind: format_ for format_, kind in KIND_OF_FORMAT.items()}


class Node(NamedTuple):
    """One entry of a directory. None: the tree does not know.

    A tuple, because a job makes millions of them.
    """

    name: bytes  # the last component; of the root: empty
    kind: NodeKind
    size: int = 0  # bytes; files
    mtime_ns: int | None = None  # nanoseconds since 1970
    mode: int | None = None  # permission bits only
    uid: int | None = None
    gid: int | None = None
    token: Hashable = None  # unequal when the file was changed: (inode, ctime_ns), an etag, …
    link: Hashable = None  # equal for the names of one file within this tree; None: one name only
    target: bytes | None = None  # symlinks
    rdev: int = 0  # devices
    allocated: int | None = None  # bytes that are not holes
    owner: str | None = None  # the user's name
    group: str | None = None
    checksum: Checksum | None = None  # of the whole content
    content: bytes | None = None  # snapshots: equal ones have equal bytes
    atime_ns: int | None = None
    exact: bool = True  # False: size and time are a listing's; `stat` before reading


class Metadata(NamedTuple):
    """What is to be set; None: leave it."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None
    xattrs: Mapping[bytes, bytes] | None = None  # all of them, system.posix_acl_* included


@dataclass(frozen=True, slots=True)
class Features:
    """What a tree can keep. A job asks before it tries; what is lacking raises Unsupported."""

    write: bool = False
    why_not: str = ""  # why it cannot be written, for people
    directories: bool = True  # empty ones exist
    symlinks: bool = False
    hard_links: bool = False
    specials: bool = False  # pipes, sockets, devices
    mode: bool = False
    owner: bool = False
    xattrs: bool = False
    holes: bool = False
    rename: bool = False
    mtime_resolution_ns: int = 1  # of what it keeps; 0: mtimes cannot be set
    conditional: bool = False  # `write` refuses atomically when the file is another one than before
    case_sensitive: bool = True
    name_bytes_max: int = 255  # of one component
    path_bytes_max: int = 4_096
    local: bool = False  # no wire: compression of what moves would do nothing
    tells_all: bool = False  # tokens change with any attribute, not with the content alone
    chunked: bool = False  # content is stored as chunks: only those that lack are moved
    round_trip_s: float = 0.0  # a guess: how much is worth doing at once


class Content(Protocol):
    """The bytes of a file to be written; may be read again when a write is retried."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises Changed when the source is another one meanwhile."""


Page = Sequence[Node]
PageSink = Callable[[Page], Awaitable[None]]


class Tree(Protocol):
    """A tree of files."""

    @property
    def label(self) -> str:
        """Where it is, for people, logs and the audit trail: no secrets."""

    @property
    def features(self) -> Features:
        """What it can keep; known without asking."""

    async def list(self, path: bytes, sink: PageSink) -> None:
        """Hand the nodes of a directory to `sink`, in pages, each once, in any order.

        Complete when this returns; when it raises, what came is only a part. Raises Missing.
        """

    async def stat(self, path: bytes) -> Node:
        """One node, symlinks not followed. Raises Missing."""

    async def read(self, path: bytes, node: Node, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of the file as it was when `node` was seen.

        Raises Changed when it is another one meanwhile, as far as the tree can tell.
        """

    async def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        """The extended attributes, ACLs among them; empty where the tree has none."""

    async def data_ranges(self, path: bytes, node: Node) -> Sequence[tuple[int, int]] | None:
        """(offset, length) of what is not a hole, ascending; None: the tree cannot tell."""

    async def write(
        self,
        path: bytes,
        content: Content,
        metadata: Metadata,
        *,
        ranges: Sequence[tuple[int, int]] | None = None,
        old: Node | None = None,
        replace: bool = True,
    ) -> Node:
        """Write a file whole under a temporary name, durably, then under its own: all or nothing.

        `ranges`: what of the content is not a hole. `old`: what may be replaced; Changed is raised
        if something else is there. `replace` false: Exists if anything is. The node of what is
        there now is returned. A parent that is missing is made. Raises Full, Denied, Unsupported.
        """

    async def mkdir(self, path: bytes, metadata: Metadata) -> None:
        """Make a directory, and what is missing above it. Nothing happens where there is one."""

    async def symlink(self, path: bytes, target: bytes, metadata: Metadata) -> None:
        """Make a symlink, in place of a file or symlink."""

    async def hard_link(self, path: bytes, existing: bytes) -> None:
        """Give a file one more name, in place of a file or symlink."""

    async def special(self, path: bytes, node: Node, metadata: Metadata) -> None:
        """Make a pipe, socket or device, in place of a file or symlink."""

    async def set_metadata(self, path: bytes, metadata: Metadata) -> None:
        """Set what is given and can be kept; symlinks are not followed."""

    async def delete(self, path: bytes, node: Node) -> None:
        """Remove a file, symlink, special or empty directory. Raises Missing, NotEmpty."""

    async def rename(self, path: bytes, new_path: bytes) -> None:
        """Move a file or directory to a name that is free. Raises Missing, Exists."""

    async def sync(self) -> None:
        """Return when everything done so far survives a power cut."""

    async def close(self) -> None:
        """Give everything up; bounded in time."""


class Whole(NamedTuple):
    """A small file, all of it."""

    data: bytes
    xattrs: Mapping[bytes, bytes] | None = None  # None: not asked for


@runtime_checkable
class ManyReader(Protocol):
    """What a tree may be besides: one that reads small files together, for less than each costs.

    Ask by `small_reads.read_small`, which knows what to do with the others.
    """

    async def read_many(
        self, files: Sequence[tuple[bytes, Node]], *, xattrs: bool
    ) -> Sequence[Whole | RemoteError]:
        """Files as they were when their nodes were seen, in the same order; each fails alone.

        Busy stands for one that would hold up the others: read it alone. The caller bounds how many
        bytes they are. Raises RemoteError when none could be asked for.
        """
