"""The reference remote: a tree in memory that has every capability and keeps every attribute.

It passes the same suite as the remotes with servers, and stands in for them in tests of what is
built on top. What is shared by the remotes of one tree, and outlives them, is a `MemoryServer`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import trio

from syncer.remotes.errors import (
    Changed,
    Exists,
    Garbled,
    Missing,
    NotEmpty,
    Unreachable,
    Unsupported,
)
from syncer.remotes.remote import (
    ROOT,
    Attributes,
    ByteSource,
    Capabilities,
    Data,
    Entry,
    Kind,
    PageSink,
    Version,
)

_PAGE_ENTRIES = 1000
_PART_BYTES = 1 << 20  # between two looks at whether the caller is still there

_CAPABILITIES = Capabilities(
    write=True,
    write_if=True,
    rename=True,
    mkdir=True,
    symlinks=True,
    mode=True,
    owner=True,
    mtime_resolution_ns=1,
    metadata=True,
    etag=True,
)

BeforeRequest = Callable[[str, bytes], Awaitable[None]]


@dataclass(slots=True)
class _Node:
    """A file, directory or symlink. Its `entry.key` is not kept up to date: `_entry` sets it."""

    entry: Entry
    data: bytes = b""
    children: dict[bytes, _Node] = field(default_factory=dict)


class MemoryServer:
    """The tree, and how it can be reached.

    `before_request` is called with the method's name and the key before each request is answered:
    it may count, wait, or raise what any remote may raise.
    """

    def __init__(self, before_request: BeforeRequest | None = None) -> None:
        self.reachable = True
        self.before_request = before_request
        self._generation = 0  # of the last change; the next etag
        self._clock_ns = 1_700_000_000_000_000_000  # a step later with each change
        self.root = self.new_node(Kind.DIRECTORY)

    def _tick(self) -> int:
        self._generation += 1
        self._clock_ns += 1_000_001
        return self._clock_ns

    def new_node(self, kind: Kind, data: bytes = b"", target: bytes | None = None) -> _Node:
        """A node of now, in no directory yet."""
        now_ns = self._tick()
        entry = Entry(
            ROOT,
            kind,
            size=len(data),
            mtime_ns=now_ns,
            atime_ns=now_ns,
            mode={Kind.DIRECTORY: 0o755, Kind.SYMLINK: 0o777}.get(kind, 0o644),
            uid=os.getuid(),
            gid=os.getgid(),
            target=target,
            etag=f"g{self._generation}" if kind is Kind.FILE else "",
        )
        return _Node(entry, data)

    async def answer(self, method: str, key: bytes) -> None:
        """Begin a request. Raises Unreachable, or what `before_request` raises."""
        await trio.lowlevel.checkpoint()
        if self.before_request is not None:
            await self.before_request(method, key)
        if not self.reachable:
            raise Unreachable("memory: connection refused; is the server running?")


def _split(key: bytes) -> list[bytes]:
    """The components of a key."""
    bare = key.removesuffix(b"/")
    return bare.split(b"/") if bare else []


def _entry(node: _Node, key: bytes) -> Entry:
    bare = key.removesuffix(b"/")
    if node.entry.kind is Kind.DIRECTORY and bare:
        bare += b"/"
    return dataclasses.replace(node.entry, key=bare)


def _with(entry: Entry, attributes: Attributes) -> Entry:
    """`entry` with what `attributes` sets."""
    values = {name: getattr(attributes, name) for name in ("uid", "gid", "mtime_ns", "atime_ns")}
    if attributes.mode is not None:
        values["mode"] = attributes.mode & 0o7777
    if attributes.metadata is not None:
        values["metadata"] = dict(attributes.metadata)
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(entry, **given)


class MemoryRemote:
    """One user of a MemoryServer. See Remote."""

    def __init__(self, server: MemoryServer, url: str = "memory:///") -> None:
        self._server = server
        self._url = url
        self._closed = False

    @property
    def url(self) -> str:
        """See Remote."""
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        """See Remote."""
        return _CAPABILITIES

    async def _begin(self, method: str, key: bytes) -> None:
        assert not self._closed, "the remote has been closed"
        await self._server.answer(method, key)

    # Finding. No await from finding to acting: each request happens at one moment.

    def _walk(self, names: list[bytes]) -> _Node | None:
        node = self._server.root
        for name in names:
            child = node.children.get(name)
            if child is None:
                return None
            node = child
        return node

    def _find(self, key: bytes) -> _Node:
        node = self._walk(_split(key))
        if node is None or (key.endswith(b"/") and node.entry.kind is not Kind.DIRECTORY):
            raise Missing(f"{self._url}: there is no {key!r}")
        return node

    def _parent(self, key: bytes) -> _Node:
        """The directory that `key` is or would be in."""
        names = _split(key)
        parent = self._walk(names[:-1]) if names else None
        if parent is None or parent.entry.kind is not Kind.DIRECTORY:
            raise Missing(f"{self._url}: there is no directory for {key!r}")
        return parent

    def _pinned(self, key: bytes, version: Version) -> _Node:
        node = self._walk(_split(key))
        if node is None or node.entry.kind is not Kind.FILE or node.entry.version != version:
            raise Changed(f"{self._url}: {key!r} is not the version that was listed")
        return node

    # The protocol.

    async def list(self, key: bytes, sink: PageSink) -> None:
        """See Remote."""
        await self._begin("list", key)
        node = self._walk(_split(key))
        if node is None:
            raise Missing(f"{self._url}: there is no {key!r}")
        if node.entry.kind is not Kind.DIRECTORY:
            raise Unsupported(f"{self._url}: {key!r} is no directory")
        prefix = b"".join(name + b"/" for name in _split(key))
        entries = [_entry(child, prefix + name) for name, child in node.children.items()]
        for start in range(0, len(entries), _PAGE_ENTRIES):
            if start:
                await self._begin("list", key)
            await sink(entries[start : start + _PAGE_ENTRIES])

    async def stat(self, key: bytes) -> Entry:
        """See Remote."""
        await self._begin("stat", key)
        return _entry(self._find(key), key)

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> Data:
        """See Remote. A view, as other kinds return: it holds its users to the protocol."""
        await self._begin("read", key)
        found = bytearray()
        while True:
            data = self._pinned(key, version).data
            end = min(offset + length, offset + len(found) + _PART_BYTES)
            found += data[offset + len(found) : end]
            if end == offset + length:
                break
            await trio.lowlevel.checkpoint()
        if len(found) != length:
            raise Garbled(f"{self._url}: {key!r} has no {length} bytes at {offset}")
        return memoryview(found).toreadonly()

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        await self._begin("read_whole", key)
        node = self._find(key)
        if node.entry.kind is not Kind.FILE:
            raise Unsupported(f"{self._url}: {key!r} is no file")
        if len(node.data) > size_max:
            raise Unsupported(f"{self._url}: {key!r} is larger than {size_max} bytes")
        return _entry(node, key), node.data

    async def write(
        self,
        key: bytes,
        source: ByteSource,
        attributes: Attributes | None = None,
        *,
        if_version: Version | None = None,
        replace: bool = True,
    ) -> Entry:
        """See Remote."""
        await self._begin("write", key)
        parts = [
            await source.read(offset, min(_PART_BYTES, source.size - offset))
            for offset in range(0, source.size, _PART_BYTES)
        ]
        data = b"".join(parts)
        if len(data) != source.size:
            raise Garbled(f"{self._url}: the source of {key!r} gave {len(data)} bytes")
        if if_version is not None:
            self._pinned(key, if_version)
        names = _split(key)
        old = self._walk(names)
        if old is not None and (not replace or old.entry.kind is Kind.DIRECTORY):
            raise Exists(f"{self._url}: {key!r} is there already")
        node = self._server.new_node(Kind.FILE, data)
        if attributes is not None:
            node.entry = _with(node.entry, attributes)
        parent = self._server.root
        for name in names[:-1]:
            if name not in parent.children:
                parent.children[name] = self._server.new_node(Kind.DIRECTORY)
            parent = parent.children[name]
            if parent.entry.kind is not Kind.DIRECTORY:
                raise Exists(f"{self._url}: {key!r} would lie in {name!r}, which is no directory")
        parent.children[names[-1]] = node
        return _entry(node, key)

    async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:
        """See Remote."""
        await self._begin("rename", key)
        node, source, target = self._find(key), self._parent(key), self._parent(new_key)
        name, new_name = _split(key)[-1], _split(new_key)[-1]
        old = target.children.get(new_name)
        if old is node:
            return
        if old is not None:
            if not replace or old.entry.kind is not node.entry.kind:
                raise Exists(f"{self._url}: {new_key!r} is there already")
            if old.children:
                raise NotEmpty(f"{self._url}: {new_key!r} has entries")
        if any(below is target for below in _below(node)):
            raise Unsupported(f"{self._url}: {new_key!r} lies in {key!r}")
        del source.children[name]
        target.children[new_name] = node

    async def delete(self, key: bytes) -> None:
        """See Remote."""
        await self._begin("delete", key)
        node, parent = self._find(key), self._parent(key)
        if node.entry.kind is Kind.DIRECTORY:
            if not key.endswith(b"/"):
                raise Unsupported(f"{self._url}: {key!r} is a directory")
            if node.children:
                raise NotEmpty(f"{self._url}: {key!r} has entries")
        del parent.children[_split(key)[-1]]

    async def mkdir(self, key: bytes) -> None:
        """See Remote."""
        await self._begin("mkdir", key)
        self._add(key, self._server.new_node(Kind.DIRECTORY))

    async def symlink(self, key: bytes, target: bytes) -> None:
        """See Remote."""
        await self._begin("symlink", key)
        self._add(key, self._server.new_node(Kind.SYMLINK, target=target))

    def _add(self, key: bytes, node: _Node) -> None:
        parent, name = self._parent(key), _split(key)[-1]
        if name in parent.children:
            raise Exists(f"{self._url}: {key!r} is there already")
        parent.children[name] = node

    async def set_attributes(self, key: bytes, attributes: Attributes) -> None:
        """See Remote."""
        await self._begin("set_attributes", key)
        node = self._find(key)
        node.entry = _with(node.entry, attributes)

    async def close(self) -> None:
        """See Remote."""
        await trio.lowlevel.checkpoint()
        self._closed = True


def _below(node: _Node) -> Iterator[_Node]:
    """`node` and all that is in it."""
    yield node
    for child in node.children.values():
        yield from _below(child)
