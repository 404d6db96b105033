"""The namespace as the worker process sees it through the door. Owned by the filesystem's loop.

Changes go past the kernel: it is told of them afterwards. A file that is written appears with all
of its content: from taking the old name away until the new one is there nothing awaits, so that
both are of one epoch.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from blockstore.errors import OrbitError
from ghostd.door_clones import Clones
from ghostd.door_paths import Paths, check_same, names_of, shown, token_of, translated
from ghostd.door_reads import Looks
from ghostd.door_stages import Stages
from ghostd.filemap import SEGMENT_BYTES, SIZE_MAX
from ghostd.filesystem import AttributeChanges, Caller, Filesystem
from ghostd.inodes import ROOT_INO, Inode
from ghostd.invalidator import Invalidator
from ghostd.listings import Listings
from syncer.door_protocol import (
    Extent,
    Head,
    data,
    error_head,
    metadata_from_wire,
    node_to_wire,
    xattrs_to_wire,
)
from syncer.ranges import Ranges
from syncer.remotes import errors
from syncer.tree import FORMAT_OF_KIND, KIND_OF_FORMAT, Metadata, Node, NodeKind

_SEGMENTS_AT_ONCE: Final = 64  # before others have their turn
_NUMBERS: Final = 4_096  # of segments, in memory
_LAST: Final = (1 << 63) - 1  # behind every cookie
_FILE_MODE: Final = 0o644
_DIRECTORY_MODE: Final = 0o755


class Side(Protocol):
    """Answers requests of one kind."""

    async def answer(self, head: Mapping[str, Any]) -> tuple[Head, bytes]:
        """Do what a request asks for. Raises OrbitError."""


class DoorTree:
    """Answers the tree requests of a worker."""

    def __init__(
        self,
        filesystem: Filesystem,
        listings: Listings,
        invalidator: Invalidator,
        push: Side | None = None,
    ) -> None:
        """`push` answers those whose names begin with `push_`."""
        self._push = push
        self._fs = filesystem
        self._tree = filesystem.tree
        self._listings = listings
        self._paths = Paths(filesystem, listings)
        self.looks = Looks(filesystem, self._paths)
        self._invalidator = invalidator
        # Root may give files to others; a daemon of an ordinary user owns all it makes.
        self._caller = Caller(os.geteuid(), os.getegid(), os.getpid(), 0)
        self.stages = Stages(filesystem, filesystem.tree)
        self.clones = Clones(filesystem, self._paths, self.looks, self.stages)

    def check_room(self, length: int) -> None:
        """Raise Full where so many bytes would touch the reserve. For any thread."""
        if self._fs.writeback.space_left() < length:
            raise errors.Full("no space left in the state folder's disk")

    async def answer(
        self,
        head: Mapping[str, Any],
        extents: Sequence[Sequence[Extent]] = (),
        *,
        visit: int = 0,
    ) -> tuple[Head, bytes]:
        """Do what a request of a worker's visit asks for; errors are heads, too."""
        path = data(head["path"]) if "path" in head else b""
        try:
            match head["op"]:
                case "list":
                    return await self._list(path, head["after"], head["limit"]), b""
                case "stat":
                    inode = await self._paths.find(path)
                    return {"node": self._wire(inode, path.rpartition(b"/")[2])}, b""
                case "read":
                    return {}, await self._read(path, head)
                case "xattrs":
                    inode = await self._paths.find(path)
                    return {"xattrs": xattrs_to_wire(self._tree.xattrs(inode))}, b""
                case "ranges":
                    ranges = await self._ranges(path, head)
                    return {"known": ranges is not None}, (ranges or Ranges()).to_bytes()
                case "write" | "stage" | "unstage":
                    return await self._take_in(head, path, extents, visit), b""
                case "flush":
                    await self._fs.sync()
                    return {}, b""
                case str(op) if op.startswith("push_") and self._push is not None:
                    return await self._push.answer(head)
                case _:
                    await self._change(head, path)
                    await self._invalidator.told()
                    return {}, b""
        except OrbitError as error:
            return error_head(translated(error, path)), b""

    # --- finding -------------------------------------------------------------------------------

    async def _parent(self, path: bytes) -> tuple[Inode, bytes]:
        """The directory that a path's last name belongs in; made where it is missing."""
        names = names_of(path)
        if not names:
            raise errors.Unsupported("the root of the mount is there already")
        inode = self._tree.inode(ROOT_INO)
        for name in names[:-1]:
            if inode.projection and inode.is_dir:
                await self._listings.find(inode, name)
            found = self._tree.find(inode.ino, name)
            if found is None:
                inode = self._made(inode, name, stat.S_IFDIR | _DIRECTORY_MODE)
            else:
                inode = self._tree.inode(found[1])
            if not inode.is_dir:
                raise errors.Exists(f"/{shown(path)}: {shown(name)} is no directory")
        if inode.projection:
            await self._listings.find(inode, names[-1])
        return inode, names[-1]

    def _current(self, directory: Inode, name: bytes) -> Inode | None:
        found = self._tree.find(directory.ino, name)
        return None if found is None else self._tree.inode(found[1])

    # --- reading -------------------------------------------------------------------------------

    async def _list(self, path: bytes, after: int, limit: int) -> Head:
        directory = await self._paths.find(path)
        if not directory.is_dir:
            raise errors.Missing(f"/{shown(path)}: is no directory")
        if directory.projection and not after:
            await self._listings.fresh(directory)
        nodes: list[list[Any]] = []
        last = after
        while len(nodes) < limit:
            page = list(self._tree.list_page(directory.ino, last, _LAST, 200))
            if not page:
                return {"nodes": nodes, "after": 0}
            for cookie, name, inode, row in page:
                last = cookie
                found = inode or Inode((row or ())[2:], stored=True)  # type: ignore[arg-type]
                nodes.append(self._wire(found, name))
            await trio.lowlevel.checkpoint()
        return {"nodes": nodes, "after": last}

    @staticmethod
    def _wire(inode: Inode, name: bytes) -> list[Any]:
        kind = KIND_OF_FORMAT[stat.S_IFMT(inode.mode)]
        return node_to_wire(
            Node(
                name=name,
                kind=kind,
                size=inode.size if kind is NodeKind.FILE else 0,
                mtime_ns=inode.mtime_ns,
                mode=stat.S_IMODE(inode.mode),
                uid=inode.uid,
                gid=inode.gid,
                token=token_of(inode),  # type: ignore[arg-type]  # a list on the wire
                link=inode.ino if inode.nlink > 1 and not inode.is_dir else None,
                target=inode.target,
                rdev=inode.rdev,
                allocated=None if inode.base else inode.allocated,
                atime_ns=inode.atime_ns,
            )
        )

    async def _read(self, path: bytes, head: Mapping[str, Any]) -> bytes:
        inode = await self._paths.seen(path, head["token"])
        self._fs.open(inode.ino)
        try:
            data = await self._fs.reader.read_long(inode, head["offset"], head["length"])
            if len(data) < head["length"]:
                raise errors.Changed(f"/{shown(path)}: is shorter than it was")
            check_same(inode, head["token"], path)
            return data
        finally:
            self._fs.release(inode.ino)

    async def _ranges(self, path: bytes, head: Mapping[str, Any]) -> Ranges | None:
        """None: there are no holes."""
        inode = await self._paths.seen(path, head["token"])
        if inode.base or inode.allocated >= inode.size:
            return None
        ranges = Ranges()
        content = self._tree.content(inode)
        first = 0
        while numbers := content.numbers(first, _NUMBERS):
            for count, number in enumerate(numbers):
                if count % _SEGMENTS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
                start = number * SEGMENT_BYTES
                for low, high, _, _ in content.extents(start, start + SEGMENT_BYTES):
                    ranges.add(low, high - low)
            first = numbers[-1] + 1
        return ranges

    # --- files ---------------------------------------------------------------------------------

    async def _take_in(
        self, head: Mapping[str, Any], path: bytes, extents: Sequence[Sequence[Extent]], visit: int
    ) -> Head:
        files = head.get("files", ())
        if head["op"] == "write":
            return {"results": await self._write_all(files, extents, visit)}
        if head["op"] == "unstage":
            self.stages.done(self.stages.take(visit, head["stage"]).ino)
            return {}
        self._check_stored(files[0], path)
        return {"stage": await self.stages.extend(visit, head["stage"], extents[0])}

    async def _write_all(
        self,
        files: Sequence[Mapping[str, Any]],
        extents: Sequence[Sequence[Extent]],
        visit: int,
    ) -> list[Head]:
        results: list[Head] = []
        for file, parts in zip(files, extents, strict=True):
            path = data(file["path"])
            try:
                await self._fs.writeback.room(0)
                self._check_stored(file, path)
                inode = await self._write(path, file, parts, visit)
                results.append({"node": self._wire(inode, path.rpartition(b"/")[2])})
            except OrbitError as error:
                results.append(error_head(translated(error, path)))
            await trio.lowlevel.checkpoint()
        await self._invalidator.told()
        return results

    @staticmethod
    def _check_stored(file: Mapping[str, Any], path: bytes) -> None:
        if file.get("missing"):
            raise errors.Busy(f"/{shown(path)}: a collection has removed its chunks")

    async def _write(
        self, path: bytes, file: Mapping[str, Any], extents: Sequence[Extent], visit: int
    ) -> Inode:
        directory, name = await self._parent(path)
        size = file["size"]
        if size > SIZE_MAX or any(at + length > size for at, length, _, _ in extents):
            raise errors.Unsupported(f"/{shown(path)}: does not fit into its own size")
        current = self._current(directory, name)
        if current is not None:
            if current.is_dir:
                raise errors.Exists(f"/{shown(path)}: a directory is in the way")
            if not file["replace"]:
                raise errors.Exists(f"/{shown(path)}: is there already")
        if file["old"] is not None and (current is None or file["old"] != token_of(current)):
            raise errors.Changed(f"/{shown(path)}: was changed meanwhile")
        staged = self.stages.take(visit, file["stage"]) if file.get("stage") else None
        if staged is not None and staged.size > size:
            raise errors.Unsupported(f"/{shown(path)}: does not fit into its own size")
        # From here on nothing awaits.
        if current is not None:
            self._fs.unlink(directory.ino, name)
        inode = self._made(directory, name, stat.S_IFREG | _FILE_MODE, nameless=staged)
        self.stages.show(inode, extents)
        inode.size = size
        if staged is not None:
            self.stages.done(staged.ino)
        self._set(inode, metadata_from_wire(file["metadata"]))
        return inode

    def _made(
        self,
        directory: Inode,
        name: bytes,
        mode: int,
        *,
        rdev: int = 0,
        target: bytes | None = None,
        nameless: Inode | None = None,
    ) -> Inode:
        inode = self._fs.create(
            directory.ino, name, mode, self._caller, rdev=rdev, target=target, nameless=nameless
        )
        self._tell(directory, name)
        return inode

    def _known(self, inode: Inode) -> bool:
        """Whether the kernel may hold it: the root without ever having looked it up."""
        return inode.ino == ROOT_INO or self._tree.lookups.get(inode.ino) > 0

    def _tell(self, directory: Inode, name: bytes) -> None:
        """The kernel may know that the name is not there, or of what was there before."""
        if self._known(directory):
            self._invalidator.name(directory.ino, name)
            self._invalidator.inode(directory.ino)

    def _set(self, inode: Inode, metadata: Metadata) -> None:
        if metadata.xattrs is not None and inode.target is None:
            for name in [n for n in self._tree.xattrs(inode) if n not in metadata.xattrs]:
                self._fs.removexattr(inode.ino, name)
            for name, value in metadata.xattrs.items():
                self._fs.setxattr(inode.ino, name, value, self._caller)
        self._fs.setattr(
            inode.ino,
            AttributeChanges(
                mode=None if inode.target is not None else metadata.mode,
                uid=metadata.uid,
                gid=metadata.gid,
                mtime_ns=metadata.mtime_ns,
                atime_ns=metadata.atime_ns,
            ),
        )

    # --- everything else -----------------------------------------------------------------------

    async def _change(self, head: Mapping[str, Any], path: bytes) -> None:
        await self._fs.writeback.room(0)
        match head["op"]:
            case "mkdir":
                await self._mkdir(path, metadata_from_wire(head["metadata"]))
            case "symlink":
                directory, name = await self._cleared(path)
                mode = stat.S_IFLNK | 0o777
                inode = self._made(directory, name, mode, target=data(head["target"]))
                self._set(inode, metadata_from_wire(head["metadata"]))
            case "special":
                directory, name = await self._cleared(path)
                mode = FORMAT_OF_KIND[NodeKind(head["kind"])] | _FILE_MODE
                inode = self._made(directory, name, mode, rdev=head["rdev"])
                self._set(inode, metadata_from_wire(head["metadata"]))
            case "link":
                existing = await self._paths.find(data(head["existing"]))
                directory, name = await self._parent(path)
                if self._current(directory, name) is existing:
                    return
                self._clear(directory, name, path)
                self._fs.link(existing.ino, directory.ino, name)
                self._tell(directory, name)
            case "set_metadata":
                inode = await self._paths.find(path)
                self._set(inode, metadata_from_wire(head["metadata"]))
                if self._known(inode):
                    self._invalidator.inode(inode.ino)
            case "delete":
                await self._paths.find(path)
                directory, name = await self._parent(path)
                remove = self._fs.rmdir if head["directory"] else self._fs.unlink
                remove(directory.ino, name)
                self._tell(directory, name)
            case "rename":
                await self._rename(path, data(head["new_path"]))
            case op:
                raise errors.Unsupported(f"the door knows no {op!r}")

    async def _mkdir(self, path: bytes, metadata: Metadata) -> None:
        if not names_of(path):
            return
        directory, name = await self._parent(path)
        current = self._current(directory, name)
        if current is not None:
            if not current.is_dir:
                raise errors.Exists(f"/{shown(path)}: is there and no directory")
            return
        self._set(self._made(directory, name, stat.S_IFDIR | _DIRECTORY_MODE), metadata)

    async def _cleared(self, path: bytes) -> tuple[Inode, bytes]:
        directory, name = await self._parent(path)
        self._clear(directory, name, path)
        return directory, name

    def _clear(self, directory: Inode, name: bytes, path: bytes) -> None:
        """Take away a file or symlink that is to be replaced; the caller goes on without await."""
        current = self._current(directory, name)
        if current is None:
            return
        if current.is_dir:
            raise errors.Exists(f"/{shown(path)}: a directory is in the way")
        self._fs.unlink(directory.ino, name)

    async def _rename(self, path: bytes, new_path: bytes) -> None:
        await self._paths.find(path)
        source, name = await self._parent(path)
        target, new_name = await self._parent(new_path)
        if self._current(target, new_name) is not None:
            raise errors.Exists(f"/{shown(new_path)}: is there already")
        self._fs.rename(source.ino, name, target.ino, new_name)
        self._tell(source, name)
        self._tell(target, new_name)
