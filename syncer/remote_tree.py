"""A remote as a tree.

Object stores keep no times, modes or owners, only user metadata with each object. The tree keeps
them there, under the names and in the spelling that rclone uses on S3, so that either finds what
the other left: `mtime` in seconds with nine decimals, `mode` in octal, `uid` and `gid`. Listings of
S3 do not show metadata: nodes from there have the time of the upload and are not exact; `stat`
tells the real one. An object without `mtime` has the time of its upload. Writing keeps no other
metadata of the object that was there; setting times or modes does.

Of symlinks only the target is kept. Names that no path can hold are left out of listings: `.`,
`..`, empty ones, those with a NUL or `/`, and of an object `a` beside a directory `a/` whichever
comes second; so are devices and the like, which remotes list but cannot describe. `warn` is told.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import trio

from syncer.remote_parts import RemoteParts
from syncer.remotes.errors import Changed, Exists, Missing, Unsupported
from syncer.remotes.keys import components
from syncer.remotes.remote import Attributes, Entry, Kind, Remote, Version
from syncer.remotes.remote import Page as Entries
from syncer.tree import ROOT, Content, Features, Metadata, Node, NodeKind, PageSink

_log = logging.getLogger(__name__)

SEEN_MAX: Final = 100_000  # names of one directory that are remembered to find doubles: 12 MB
_NS: Final = 10**9
_KINDS: Final = {
    Kind.FILE: NodeKind.FILE,
    Kind.DIRECTORY: NodeKind.DIRECTORY,
    Kind.SYMLINK: NodeKind.SYMLINK,
}
_DECIMAL: Final = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9})\d*)?")
_FRACTION: Final = re.compile(r"\.(\d+)")
_MODE_FILE: Final = 0o100000
_NOTHING: Final = Metadata()


class Traits(NamedTuple):
    """What the protocol says of a kind of remote but its capabilities do not."""

    round_trip_s: float = 0.02
    case_sensitive: bool = True
    name_bytes_max: int = 255
    path_bytes_max: int = 4_096


# By scheme of the URL. A round trip is a guess: the Internet for clouds, a local network else.
_TRAITS: Final = {
    "file": Traits(0.0),
    "memory": Traits(0.0),
    "sftp": Traits(0.01),
    "smb": Traits(0.005, case_sensitive=False),
    # Keys are limited as a whole.
    "s3": Traits(0.04, name_bytes_max=1_024, path_bytes_max=1_024),
    "gs": Traits(0.04, name_bytes_max=1_024, path_bytes_max=1_024),
    "az": Traits(0.04, name_bytes_max=1_024, path_bytes_max=1_024),
}


def mtime_text(mtime_ns: int) -> bytes:
    """A time (nanoseconds since 1970) as rclone writes it: seconds with nine decimals."""
    sign, rest = ("-", -mtime_ns) if mtime_ns < 0 else ("", mtime_ns)
    return f"{sign}{rest // _NS}.{rest % _NS:09d}".encode()


def parse_mtime(text: bytes | None) -> int | None:
    """Read that, or ISO 8601, as rclone writes it on Azure and Google. None: it is no time."""
    if text is None:
        return None
    plain = text.decode("ascii", "replace").strip()
    if found := _DECIMAL.fullmatch(plain):
        sign, seconds, decimals = found.groups()
        ns = int(seconds) * _NS + int((decimals or "").ljust(9, "0"))
        return -ns if sign else ns
    fraction = _FRACTION.search(plain)
    try:
        moment = datetime.fromisoformat(_FRACTION.sub("", plain, count=1))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    ns = int(fraction[1][:9].ljust(9, "0")) if fraction else 0
    return (since.days * 86_400 + since.seconds) * _NS + ns


def _number(text: bytes | None, base: int = 10) -> int | None:
    try:
        return None if text is None else int(text, base)
    except ValueError:
        return None


def describe(metadata: Metadata) -> dict[str, bytes]:
    """What of the metadata is kept as an object's user metadata."""
    found = {}
    if metadata.mtime_ns is not None:
        found["mtime"] = mtime_text(metadata.mtime_ns)
    if metadata.mode is not None:
        found["mode"] = b"%o" % (_MODE_FILE | metadata.mode)
    if metadata.uid is not None:
        found["uid"] = b"%d" % metadata.uid
    if metadata.gid is not None:
        found["gid"] = b"%d" % metadata.gid
    return found


class RemoteTree:
    """See Tree. Closes the remote with itself."""

    def __init__(
        self,
        remote: Remote,
        *,
        warn: Callable[[str], None] | None = None,
        round_trip_s: float | None = None,
    ) -> None:
        """`warn` is told of names that are left out; without it the log is.

        `round_trip_s`: how long the server takes to answer, if that is known.
        """
        self._remote = remote
        self._warn = warn or (lambda text: _log.warning("%s", text))
        self.left_out = 0  # entries of listings that no path can name
        self._parts = RemoteParts(remote)
        keeps = remote.capabilities
        # Attributes live in the objects' metadata where there is no other place for them.
        self._described = keeps.metadata and not keeps.mtime_resolution_ns
        scheme = remote.url.partition(":")[0].lower()
        traits = _TRAITS.get(scheme, Traits())
        self._features = Features(
            write=keeps.write,
            why_not=keeps.write_reason,
            directories=keeps.mkdir,
            symlinks=keeps.symlinks,
            mode=keeps.mode or self._described,
            owner=keeps.owner or self._described,
            rename=keeps.rename,
            mtime_resolution_ns=1 if self._described else keeps.mtime_resolution_ns,
            conditional=keeps.write_if,
            case_sensitive=traits.case_sensitive,
            name_bytes_max=traits.name_bytes_max,
            path_bytes_max=traits.path_bytes_max,
            local=traits.round_trip_s == 0.0,
            round_trip_s=traits.round_trip_s if round_trip_s is None else round_trip_s,
        )

    @property
    def label(self) -> str:
        """See Tree."""
        return self._remote.url

    @property
    def features(self) -> Features:
        """See Tree."""
        return self._features

    # Values.

    @staticmethod
    def _key(path: bytes, *, directory: bool = False) -> bytes:
        """The remote's key. Raises Unsupported for what is no path."""
        components(path)
        if path.endswith(b"/"):
            raise Unsupported(f"{path!r}: no path ends in a /")
        return path + b"/" if directory and path else path

    def _node(self, entry: Entry, *, listed: bool = False) -> Node | None:
        """What an entry says; None for what no node can be."""
        kind = _KINDS.get(entry.kind)
        if kind is None:
            return None
        name = entry.name
        if kind is NodeKind.SYMLINK:
            return Node(name, kind, target=entry.target)
        mtime_ns, mode, uid, gid, exact = (
            entry.mtime_ns,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.exact,
        )
        if kind is NodeKind.DIRECTORY:
            kept = mtime_ns if self._remote.capabilities.mtime_resolution_ns else None
            return Node(name, kind, mtime_ns=kept, mode=mode, uid=uid, gid=gid)
        token: tuple[str, int] = (entry.etag, entry.version.mtime_ns)
        if self._described:
            # Listings round times otherwise than `stat`: the etag alone tells versions apart.
            token = (entry.etag, 0 if entry.etag else token[1])
            said = entry.metadata
            known_ns = parse_mtime(said.get("mtime"))
            exact = exact and (known_ns is not None or not listed)
            mtime_ns = mtime_ns if known_ns is None else known_ns
            mode = _number(said.get("mode"), 8)
            mode = None if mode is None else mode & 0o7777
            uid, gid = _number(said.get("uid")), _number(said.get("gid"))
        return Node(
            name,
            kind,
            entry.size,
            mtime_ns,
            mode,
            uid,
            gid,
            token,
            checksum=entry.checksum,
            atime_ns=entry.atime_ns,
            exact=exact,
        )

    @staticmethod
    def _version(node: Node) -> Version:
        """The version that a node was made from."""
        match node.token:
            case (str(etag), int(mtime_ns)):
                return Version(node.size, etag, mtime_ns)
            case _:
                raise Changed(f"{node.name!r} was not listed here: list or stat it")

    def _attributes(self, metadata: Metadata, *, directory: bool = False) -> Attributes:
        """What of it the remote keeps by itself."""
        keeps = self._remote.capabilities
        times = keeps.mtime_resolution_ns > 0
        described = self._described and not directory
        return Attributes(
            mode=metadata.mode if keeps.mode else None,
            uid=metadata.uid if keeps.owner else None,
            gid=metadata.gid if keeps.owner else None,
            mtime_ns=metadata.mtime_ns if times else None,
            atime_ns=metadata.atime_ns if times else None,
            metadata=describe(metadata) if described else None,
        )

    # Finding.

    async def list(self, path: bytes, sink: PageSink) -> None:
        """See Tree."""
        seen: set[bytes] = set()
        left_out: list[bytes] = []

        async def take(page: Entries) -> None:
            nodes = []
            for entry in page:
                if self._parts.takes(path, entry):
                    continue
                node = self._node(entry, listed=True)
                if node is None or not self._nameable(node.name, seen):
                    left_out.append(entry.key)
                else:
                    nodes.append(node)
            if nodes:
                await sink(nodes)

        await self._remote.list(self._key(path, directory=True), take)
        if left_out:
            self.left_out += len(left_out)
            self._warn(
                f"{self.label}: {len(left_out)} entries of {path!r} are left out, for no path "
                f"can name them: {left_out[0]!r}" + (" …" if len(left_out) > 1 else "")
            )

    @property
    def found_parts(self) -> bool:
        """Whether a listing has come by a file that is being written, or was left so."""
        return self._parts.any

    async def clean(self, path: bytes) -> int:
        """Remove those of one directory that nobody writes any more. See RemoteParts."""
        return await self._parts.clean(path)

    def _nameable(self, name: bytes, seen: set[bytes]) -> bool:
        if name in {b"", b".", b".."} or b"/" in name or b"\0" in name or name in seen:
            return False
        # Where directories exist by themselves there are no doubles. Beyond the limit the walk,
        # which sorts, finds them.
        if not self._features.directories and len(seen) < SEEN_MAX:
            seen.add(name)
        return True

    async def stat(self, path: bytes) -> Node:
        """See Tree."""
        return self._known(path, await self._remote.stat(self._key(path)))

    def _known(self, path: bytes, entry: Entry) -> Node:
        node = self._node(entry)
        if node is None:
            raise Unsupported(f"{self.label}: {path!r} is a device, pipe or socket")
        return node._replace(name=path.rpartition(b"/")[2])

    async def read(self, path: bytes, node: Node, offset: int, length: int) -> bytes:
        """See Tree."""
        if not length:
            await trio.lowlevel.checkpoint()
            return b""
        return bytes(await self._remote.read(self._key(path), self._version(node), offset, length))

    async def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        """See Tree."""
        self._key(path)
        await trio.lowlevel.checkpoint()
        return {}

    async def data_ranges(
        self,
        path: bytes,
        node: Node,  # noqa: ARG002 - the protocol's
    ) -> Sequence[tuple[int, int]] | None:
        """See Tree."""
        self._key(path)
        await trio.lowlevel.checkpoint()
        return None

    # Changing.

    async def write(
        self,
        path: bytes,
        content: Content,
        metadata: Metadata,
        *,
        ranges: Sequence[tuple[int, int]] | None = None,  # noqa: ARG002 - holes are zeros here
        old: Node | None = None,
        replace: bool = True,
    ) -> Node:
        """See Tree."""
        key = self._key(path)
        version = None
        if old is not None:
            if old.kind is NodeKind.FILE:
                version = self._version(old)
            else:
                await self._check(path, old)
        # Its etag says which version it is: nobody asks for the time that the server gave it.
        attributes = dataclasses.replace(self._attributes(metadata), brief=True)
        entry = await self._remote.write(
            key, content, attributes, if_version=version, replace=replace
        )
        node = self._known(path, entry)
        if not self._described:
            return node
        # Not every store repeats what it was given.
        return node._replace(
            mtime_ns=node.mtime_ns if metadata.mtime_ns is None else metadata.mtime_ns,
            mode=metadata.mode,
            uid=metadata.uid,
            gid=metadata.gid,
        )

    async def _check(self, path: bytes, old: Node) -> None:
        """Raise Changed if something else is there than `old`, which is no file."""
        try:
            found = await self.stat(path)
        except Missing:
            raise Changed(f"{self.label}: {path!r} is gone") from None
        if (found.kind, found.target) != (old.kind, old.target):
            raise Changed(f"{self.label}: {path!r} is not what was to be replaced")

    async def mkdir(self, path: bytes, metadata: Metadata) -> None:
        """See Tree. Nothing happens where directories exist by what is in them."""
        key = self._key(path, directory=True)
        if not self._features.directories:
            if not self._features.write:
                raise Unsupported(f"{self.label}: {self._features.why_not}")
            await trio.lowlevel.checkpoint()
            return
        await self._mkdir(key)
        if metadata != _NOTHING:
            await self._set(key, self._attributes(metadata, directory=True))

    async def _mkdir(self, key: bytes) -> None:
        if key == ROOT:
            await self._remote.stat(key)
            return
        try:
            await self._remote.mkdir(key)
        except Missing:
            await self._mkdir(_parent(key))
            await self._mkdir_again(key)
        except Exists:
            entry = await self._remote.stat(key.removesuffix(b"/"))
            if entry.kind is not Kind.DIRECTORY:
                raise

    async def _mkdir_again(self, key: bytes) -> None:
        try:
            await self._remote.mkdir(key)
        except Exists:  # somebody else was faster
            entry = await self._remote.stat(key.removesuffix(b"/"))
            if entry.kind is not Kind.DIRECTORY:
                raise

    async def symlink(
        self,
        path: bytes,
        target: bytes,
        metadata: Metadata,  # noqa: ARG002 - see above: of symlinks it is not kept
    ) -> None:
        """See Tree. For a moment the name is free where something else is replaced."""
        key = self._key(path)
        for _ in range(3):
            try:
                await self._remote.symlink(key, target)
            except Missing:
                await self._mkdir(_parent(key))
            except Exists:
                entry = await self._remote.stat(key)
                if entry.kind is Kind.DIRECTORY:
                    raise
                if entry.target == target:
                    return
                await self._remote.delete(key)
            else:
                return
        raise Changed(f"{self.label}: {path!r} is being changed by somebody else")

    async def hard_link(self, path: bytes, existing: bytes) -> None:  # noqa: ARG002
        """See Tree: always Unsupported."""
        await trio.lowlevel.checkpoint()
        raise Unsupported(f"{self.label}: {path!r}: there are no hard links here")

    async def special(self, path: bytes, node: Node, metadata: Metadata) -> None:  # noqa: ARG002
        """See Tree: always Unsupported."""
        await trio.lowlevel.checkpoint()
        raise Unsupported(f"{self.label}: {path!r}: no {node.kind.value} can be made here")

    async def set_metadata(self, path: bytes, metadata: Metadata) -> None:
        """See Tree."""
        entry = await self._remote.stat(self._key(path))
        if entry.kind is Kind.SYMLINK:
            return
        if entry.kind is Kind.FILE and self._described:
            said = {**entry.metadata, **describe(metadata)}
            if said != dict(entry.metadata):
                await self._set(entry.key, Attributes(metadata=said))
            return
        directory = entry.kind is Kind.DIRECTORY
        await self._set(entry.key, self._attributes(metadata, directory=directory))

    async def _set(self, key: bytes, attributes: Attributes) -> None:
        if attributes != Attributes():
            await self._remote.set_attributes(key, attributes)

    async def delete(self, path: bytes, node: Node) -> None:
        """See Tree."""
        directory = node.kind is NodeKind.DIRECTORY
        if directory:
            await self.clean(path)
        await self._remote.delete(self._key(path, directory=directory))

    async def rename(self, path: bytes, new_path: bytes) -> None:
        """See Tree."""
        new_key = self._key(new_path)
        if not self._features.rename:
            raise Unsupported(f"{self.label}: {path!r}: nothing can be moved here")
        entry = await self._remote.stat(self._key(path))
        if entry.kind is Kind.DIRECTORY:
            new_key += b"/"
        await self._remote.rename(entry.key, new_key, replace=False)

    async def sync(self) -> None:
        """See Tree: a remote's answer means that it is stored."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """See Tree."""
        await self._remote.close()


def _parent(key: bytes) -> bytes:
    return key.removesuffix(b"/").rpartition(b"/")[0] + b"/" if b"/" in key[:-1] else ROOT
