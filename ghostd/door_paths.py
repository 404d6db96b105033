"""Paths of the door: from the root of the mount, without a leading slash, to inodes and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from blockstore.errors import OrbitError, StorageFull
from ghostd import errors as fs_errors
from ghostd.filesystem import Filesystem
from ghostd.inodes import ROOT_INO, Inode
from ghostd.listings import Listings
from syncer.remotes import errors
from syncer.remotes.errors import RemoteError

_MEANINGS: Final[tuple[tuple[type[OrbitError], type[RemoteError], str], ...]] = (
    (fs_errors.NotFound, errors.Missing, "is not there"),
    (fs_errors.AlreadyExists, errors.Exists, "is there already"),
    (fs_errors.DirectoryNotEmpty, errors.NotEmpty, "is a directory with entries"),
    (fs_errors.NoSpaceLeft, errors.Full, "no space left in the state folder's disk"),
    (StorageFull, errors.Full, "no space left in the state folder's disk"),
    (fs_errors.ReadOnly, errors.Denied, "lies in a read-only projection"),
    (fs_errors.NotPermitted, errors.Denied, "must not be done"),
    (fs_errors.ProjectionRoot, errors.Denied, "is a projection: see orbit-ctl unproject"),
    (fs_errors.StaleHandle, errors.Changed, "is another one now"),
    (fs_errors.RemoteVersionGone, errors.Changed, "is another one now"),
    (fs_errors.FilesystemError, errors.Unsupported, "cannot be done"),
)


def translated(error: OrbitError, path: bytes) -> RemoteError:
    """What an error of the filesystem means for a job."""
    if isinstance(error, RemoteError):
        return error
    name = path.decode(errors="backslashreplace")
    for kind, meaning, words in _MEANINGS:
        if isinstance(error, kind):
            said = str(error) or words
            return meaning(said if name and name in said else f"/{name}: {said}")
    return errors.Unreachable(f"/{name}: {error}")


def names_of(path: bytes) -> list[bytes]:
    """The components of a path. Raises Unsupported."""
    names = [name for name in path.split(b"/") if name]
    if b"." in names or b".." in names or b"\0" in path:
        raise errors.Unsupported(f"/{shown(path)}: no path of this filesystem")
    return names


def shown(path: bytes) -> str:
    """A path or name for people."""
    return path.decode(errors="backslashreplace")


def token_of(inode: Inode) -> list[int]:
    """What tells one state of a file from another; any attribute that is set changes it."""
    return [inode.ino, inode.ctime_ns, inode.mtime_ns, inode.size]


def check_same(inode: Inode, token: Sequence[int] | None, path: bytes) -> None:
    """Raise Changed if it is not the state that was seen."""
    if token is not None and token != token_of(inode):
        raise errors.Changed(f"/{shown(path)}: was changed meanwhile")


class Paths:
    """Finds inodes. Owned by the filesystem's loop."""

    def __init__(self, filesystem: Filesystem, listings: Listings) -> None:
        self._fs = filesystem
        self._tree = filesystem.tree
        self._listings = listings

    async def find(self, path: bytes, known: dict[bytes, int] | None = None) -> Inode:
        """What a path leads to. Raises OrbitError.

        `known`: directories that were found a moment ago, by their paths; more are added.
        """
        above, _, last = path.rpartition(b"/")
        if known is None or above not in known:
            inode = self._tree.inode(ROOT_INO)
            for name in names_of(above):
                inode = await self._step(inode, name)
            if known is not None:
                known[above] = inode.ino
        else:
            inode = self._tree.inode(known[above])
        for name in names_of(last):
            inode = await self._step(inode, name)
        return inode

    async def _step(self, inode: Inode, name: bytes) -> Inode:
        if inode.projection and inode.is_dir:
            await self._listings.find(inode, name)
        return self._fs.lookup(inode.ino, name)

    async def seen(
        self, path: bytes, token: Sequence[int] | None, known: dict[bytes, int] | None = None
    ) -> Inode:
        """A file that is still as the worker saw it. Raises Changed, OrbitError."""
        inode = await self.find(path, known)
        if not inode.is_file:
            raise errors.Changed(f"/{shown(path)}: is no file any more")
        check_same(inode, token, path)
        return inode
