"""Attaching and detaching remote trees: the projections of this daemon."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, cast

import structlog
import trio

from blockstore.errors import OrbitError
from ghostd.errors import (
    AlreadyExists,
    FilesystemError,
    InvalidArgument,
    NotADirectory,
    NotFound,
)
from ghostd.inodes import ROOT_INO, Inode
from ghostd.projection import OWN_OPTIONS, Projection, show_as_was
from ghostd.remote_rows import DirRow, ProjectionRow, VersionRow
from ghostd.remover import Remover
from ghostd.tree import Tree
from ghostd.writeback import Writeback
from syncer.remotes.errors import RemoteError
from syncer.remotes.remote import ROOT, Capabilities, Entry, Kind, Remote

log = structlog.get_logger(__name__)

MODES: Final = ("ro", "cow", "rw")
BLOCK_BYTES_MIN: Final = 128 << 10
BLOCK_BYTES_MAX: Final = 1 << 20
_FIRST_LOOK_S = 0.7  # `project` answers within a second, also when the remote does not
_CLOSE_S = 5.0
_COUNTED_MAX: Final = 10_000  # in a moment of the loop

OpenRemote = Callable[[str, Mapping[str, str]], Awaitable[Remote]]


class NoProjection(FilesystemError):
    """The path lies in no projection, or is not the root of one."""


class LocalChanges(FilesystemError):
    """A projection has changes that are nowhere else."""


class ProjectionRefused(FilesystemError):
    """What was asked for makes no sense; the message says what would."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A projection to be made."""

    url: str
    path: bytes  # from the root of the mount
    mode: str = "ro"
    ttl_s: float = 60.0
    block_bytes: int = BLOCK_BYTES_MAX
    options: Mapping[str, str] = field(default_factory=dict)
    configured: bool = False


class Projections:
    """Owned by the filesystem's loop."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        remover: Remover,
        open_remote: OpenRemote,
        *,
        now_ns: Callable[[], int],
        invalidate: Callable[[int, bytes], None],
        forget: Callable[[Projection], None],
    ) -> None:
        self._tree = tree
        self._writeback = writeback
        self._remover = remover
        self._open_remote = open_remote
        self._now_ns = now_ns
        self._invalidate = invalidate
        self._forget = forget  # end what is being fetched for it
        self._open: dict[int, Projection] = {}
        self._lock = trio.Lock()

    def get(self, projection: int) -> Projection | None:
        """A projection by its id; None: it is gone, or on its way out."""
        return self._open.get(projection)

    def takes_changes(self, projection: int) -> bool:
        """Whether files of the projection can be changed."""
        found = self._open.get(projection)
        return found is not None and found.row.writable

    def all(self) -> list[Projection]:
        """Those in use, by id."""
        return [self._open[key] for key in sorted(self._open)]

    # --- start and end ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the remotes of all projections; asks no server."""
        for row in self._tree.remote.all_projections():
            if row.removing:
                self._remover.remove_projection(row)
                continue
            try:
                remote = await self._open_remote(row.url, _for_remote(json.loads(row.options)))
            except OrbitError as error:
                log.warning("a projection cannot be opened", url=row.url, error=str(error))
                remote = cast("Remote", _Broken(row.url, error))
            self._keep(row, remote)

    async def close(self) -> None:
        """Close all remotes, within seconds."""
        with trio.move_on_after(_CLOSE_S, shield=True):
            async with trio.open_nursery() as nursery:
                for projection in self.all():
                    nursery.start_soon(projection.remote.close)
        self._open.clear()

    def _keep(self, row: ProjectionRow, remote: Remote) -> Projection:
        owner = json.loads(row.options).get("owner", "")
        uid, gid = os.geteuid(), os.getegid()
        if owner not in {"", "remote"}:
            uid, gid = (int(part) for part in owner.split(":"))
        projection = self._open[row.id] = Projection(row, remote, uid=uid, gid=gid)
        return projection

    # --- project -------------------------------------------------------------------------------

    async def project(self, wanted: Wanted) -> Projection:
        """Attach a remote tree. Asks the remote for its root, and does not wait long for it.

        Raises RemoteError (the remote refused, or has no such tree), ProjectionRefused,
        AlreadyExists, NotFound, NotADirectory.
        """
        _check(wanted)
        async with self._lock:
            remote = await self._open_remote(wanted.url, _for_remote(wanted.options))
            try:
                _check_writable(wanted, remote)
                entry = await self._first_look(remote)
                return await self._attach(wanted, remote, entry)
            except BaseException:
                with trio.move_on_after(_CLOSE_S, shield=True):
                    await remote.close()
                raise

    @staticmethod
    async def _first_look(remote: Remote) -> Entry:
        with trio.move_on_after(_FIRST_LOOK_S):
            return await remote.stat(ROOT)
        log.warning("projected before the remote has answered", url=remote.url)
        return Entry(ROOT, Kind.DIRECTORY)

    async def _attach(self, wanted: Wanted, remote: Remote, entry: Entry) -> Projection:
        parent, name, old = self._place(wanted.path)
        if entry.kind not in {Kind.DIRECTORY, Kind.FILE}:
            raise ProjectionRefused(f"{wanted.url} is neither a directory nor a file")
        tree = self._tree
        is_dir = entry.kind is Kind.DIRECTORY
        now = self._now_ns()
        mode = (stat.S_IFDIR | 0o755) if is_dir else (stat.S_IFREG | 0o644)
        root = tree.new_inode(
            mode=mode if entry.mode is None else stat.S_IFMT(mode) | entry.mode,
            uid=os.geteuid(),
            gid=os.getegid(),
            nlink=2 if is_dir else 1,
            rdev=0,
            parent=parent.ino if is_dir else 0,
            target=None,
            now_ns=now if entry.mtime_ns is None else entry.mtime_ns,
        )
        root.projection = root.ino
        if entry.as_was is not None:
            # A projection has one name, whatever the file had.
            show_as_was(tree, root, replace(entry.as_was, link=b""))
        row = ProjectionRow(
            id=root.ino,
            url=remote.url,
            mode=wanted.mode,
            options=json.dumps(dict(wanted.options), sort_keys=True),
            ttl_ms=int(wanted.ttl_s * 1_000),
            block_bytes=wanted.block_bytes,
            removing=0,
            configured=int(wanted.configured),
            created_ns=now,
        )
        projection = self._keep(row, remote)
        attributes = projection.attributes(entry)
        root.uid, root.gid = attributes.uid, attributes.gid
        if is_dir:
            tree.remote.dirs.set(root.ino, DirRow(ROOT, 0))
        else:
            root.base = root.ino
            root.size = root.base_end = entry.size
            tree.remote.versions.set(
                root.ino, VersionRow(ROOT, entry.size, entry.etag, entry.mtime_ns or 0)
            )
        tree.remote.projections.set(root.ino, row)
        if old is not None:
            self._take_name(parent, name, old)
        tree.set_name(parent.ino, name, root.ino)
        parent.children += 1
        parent.nlink += is_dir
        parent.mtime_ns = parent.ctime_ns = now
        tree.touch(parent)
        self._invalidate(parent.ino, name)
        await self._writeback.commit()
        return projection

    def _place(self, path: bytes) -> tuple[Inode, bytes, Inode | None]:
        """The directory, the name, and the empty directory of our own that is there already."""
        parts = [part for part in path.split(b"/") if part]
        if not parts or b".." in parts or b"." in parts:
            raise ProjectionRefused("a projection needs a path below the mount point")
        directory = self._tree.inode(ROOT_INO)
        for depth, part in enumerate(parts):
            shown = b"/" + b"/".join(parts[:depth])
            if not directory.is_dir:
                raise NotADirectory(f"{printable(shown)} is no directory")
            if directory.projection:
                raise ProjectionRefused(
                    f"{printable(shown)} lies in a projection; choose a path outside of it"
                )
            found = self._tree.find(directory.ino, part)
            if depth == len(parts) - 1:
                old = None if found is None else self._tree.inode(found[1])
                if old is not None and (not old.is_dir or old.children or old.projection):
                    raise AlreadyExists(
                        f"{printable(path)} is there already; name a new path, or an empty"
                        " directory"
                    )
                if len(part) > 255:
                    raise InvalidArgument(f"{printable(path)}: a name has at most 255 bytes")
                return directory, part, old
            if found is None:
                raise NotFound(
                    f"{printable(shown)}/{printable(part)} does not exist; make it first"
                )
            directory = self._tree.inode(found[1])
        raise AssertionError

    def _take_name(self, directory: Inode, name: bytes, inode: Inode) -> None:
        self._tree.drop_name(directory.ino, name)
        directory.children -= 1
        if inode.is_dir:
            directory.nlink -= 1
        self._tree.touch(directory)
        if inode.projection == 0:
            inode.nlink = 0
            self._tree.touch(inode)
            self._tree.reap(inode)
        self._invalidate(directory.ino, name)

    # --- unproject -----------------------------------------------------------------------------

    async def unproject(self, path: bytes, *, force: bool) -> Projection:
        """Detach the projection whose root is at `path`; what it cached goes with time.

        Raises NoProjection, LocalChanges (unless `force`).
        """
        async with self._lock:
            parent, name, root = self.find_root(path)
            projection = self._open[root.projection]
            if not force and projection.row.writable:
                await self._writeback.commit()
                changed = self.changes(root.projection)
                if changed:
                    raise LocalChanges(
                        f"{printable(path)} has {changed:,} local changes, which would be lost:"
                        f" see orbit-ctl diff {printable(path)}; orbit-ctl push sends them to"
                        " the remote, --force drops them"
                    )
            row = projection.row._replace(removing=1)
            del self._open[row.id]
            self._forget(projection)
            self._take_name(parent, name, root)
            self._tree.remote.projections.set(row.id, row)
            await self._writeback.commit()
            self._remover.remove_projection(row)
            with trio.move_on_after(_CLOSE_S, shield=True):
                await projection.remote.close()
            return projection

    def find_root(self, path: bytes) -> tuple[Inode, bytes, Inode]:
        """Where the root of a projection hangs: its directory, its name, itself."""
        parts = [part for part in path.split(b"/") if part]
        directory = inode = self._tree.inode(ROOT_INO)
        for part in parts:
            directory = inode
            found = self._tree.find(directory.ino, part)
            if found is None or directory.projection:
                raise NoProjection(_no_projection(path))
            inode = self._tree.inode(found[1])
        if inode.projection not in self._open or inode.ino != inode.projection:
            raise NoProjection(_no_projection(path))
        return directory, parts[-1], inode

    def unpushed(self, projection: int) -> tuple[int, int]:
        """Committed local changes as `changes` counts them, and bytes; no more than some 10,000."""
        query = self._tree.namespace.query
        names, size = query(
            "SELECT count(*), coalesce(sum(size), 0) FROM (SELECT CASE WHEN (mode & 61440) = 32768"
            " THEN size ELSE 0 END AS size FROM inodes"
            " WHERE projection = ?1 AND flags & 2 AND nlink > 0 AND ino <> ?1 LIMIT ?2)",
            (projection, _COUNTED_MAX),
        )[0]
        gone = query(
            "SELECT count(*) FROM (SELECT 1 FROM gone WHERE projection = ? LIMIT ?)",
            (projection, _COUNTED_MAX),
        )[0][0]
        return int(names + gone), int(size)

    def changes(self, projection: int) -> int:
        """How many committed local changes a projection has: files changed, names hidden."""
        query = self._tree.namespace.query
        changed = query(
            "SELECT count(*) FROM inodes WHERE projection = ? AND flags & 2 AND nlink > 0",
            (projection,),
        )[0][0]
        hidden = query(
            "SELECT count(*) FROM hidden h JOIN inodes i ON i.ino = h.parent"
            " WHERE i.projection = ?",
            (projection,),
        )[0][0]
        return int(changed + hidden)


def printable(path: bytes) -> str:
    """For messages."""
    return path.decode(errors="backslashreplace")


def _no_projection(path: bytes) -> str:
    return f"{printable(path)} is not the root of a projection; see orbit-ctl projections"


def _for_remote(options: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if name not in OWN_OPTIONS}


def _check(wanted: Wanted) -> None:
    if wanted.mode not in MODES:
        raise ProjectionRefused(f"mode {wanted.mode!r}: there are {', '.join(MODES)}")
    size = wanted.block_bytes
    if not BLOCK_BYTES_MIN <= size <= BLOCK_BYTES_MAX or size & (size - 1):
        raise ProjectionRefused("a block has 128, 256, 512 or 1024 KiB")
    if not 0 <= wanted.ttl_s <= 365 * 86_400:
        raise ProjectionRefused("the TTL is 0 seconds to a year")
    owner = wanted.options.get("owner", "remote")
    uid, _, gid = owner.partition(":")
    if owner != "remote" and not (uid.isdecimal() and gid.isdecimal()):
        raise ProjectionRefused("option owner: `remote`, or UID:GID as numbers")
    if wanted.options.get("metadata", "ask") not in {"ask", "list"}:
        raise ProjectionRefused("option metadata: `ask` (by name only), or `list`")


def _check_writable(wanted: Wanted, remote: Remote) -> None:
    if wanted.mode != "rw":
        return
    can = remote.capabilities
    if not can.write:
        reason = can.write_reason or "it takes no changes"
        raise ProjectionRefused(
            f"{wanted.url} cannot be written: {reason}; with mode cow changes stay here"
        )


class _Broken:
    """Stands in for a remote that cannot be opened: says why, whatever it is asked."""

    def __init__(self, url: str, error: OrbitError) -> None:
        self.url = url
        self.capabilities = Capabilities()
        self._error = error

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def fail(*_: object, **__: object) -> None:
            if name != "close":
                raise RemoteError(str(self._error))

        return fail
