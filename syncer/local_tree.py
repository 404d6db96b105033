"""A local folder, or file, as a tree. See Tree.

What it says is exact to the nanosecond. Versions are told by size, times, inode and change time,
compared before and after each read. Calls run in threads: a disk or network file system that hangs
holds its thread, not the caller.

Files are written as `local_parts` names them, which no listing shows. What killed writers left
behind is removed by `clean`, and from directories that are deleted.

For many files at once: `list_many` here, `copy_files` and `write_files` in `local_copy`, one large
file by `local_large`, one that differs little from its old copy by `local_delta`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar, TypeVarTuple

import trio

from syncer import linux
from syncer.local_draft import Draft
from syncer.local_features import ALL, features_of
from syncer.local_files import LocalFiles
from syncer.local_parts import PartNames
from syncer.local_root import LocalRoot
from syncer.local_scan import PAGE_NODES, Listed, Listing, Scanner
from syncer.remotes.errors import Garbled, Unreachable
from syncer.remotes.local import shown, system_errors
from syncer.tree import Content, Features, Metadata, Node, PageSink

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

THREADS_MAX: Final = 8  # two copying, two listing, the rest for what waits for the disk
TIMEOUT_S: Final = 120.0  # for one directory entry or one read, of disks that may spin up first
_PART_BYTES: Final = 4 << 20  # of a write: long enough for threads not to matter
_CLOSE_S: Final = 1.0  # to remove a draft or close a listing of which the caller has had enough


class Touched:
    """The file systems that were written to: a handle of each, from before it was written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: dict[int, int] = {}  # by device

    def note(self, folder: int) -> None:
        """Something is about to be written in this open directory."""
        device = os.fstat(folder).st_dev
        with self._lock:
            if device not in self._handles:
                # Opened before the writing, so that syncfs reports all that goes wrong since.
                self._handles[device] = os.open(b".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)

    def sync(self) -> None:
        """Bring all of them to the disk. Raises OSError."""
        with self._lock:
            handles = [os.dup(handle) for handle in self._handles.values()]
        try:
            for handle in handles:
                linux.sync_file_system(handle)
        finally:
            for handle in handles:
                os.close(handle)

    def close(self) -> None:
        """Let go of them."""
        with self._lock:
            while self._handles:
                os.close(self._handles.popitem()[1])


class LocalTree:
    """See Tree. Make one with `open`, which looks at what the file system can keep."""

    def __init__(
        self,
        root: bytes,
        *,
        features: Features = ALL,
        limiter: trio.CapacityLimiter | None = None,
        durable: bool = True,
        device: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`root` is absolute and may be missing until `mkdir(ROOT)`.

        `limiter`: of threads, shared by whoever gives the same one. `durable` false: nothing is
        brought to the disk before it gets its name; a power cut may then leave empty files.
        `device`: directories on another one raise OtherFileSystem.
        """
        assert root.startswith(b"/"), root
        self.root = LocalRoot(root.rstrip(b"/") or b"/")
        self.parts = PartNames()
        self.durable = durable
        self.touched = Touched()
        self.scanner = Scanner(self.root, device=device)
        self.files = LocalFiles(self.root, self.scanner.owners, self.parts, self.touched.note)
        self.turns = trio.Lock()  # held by whoever writes or names many small files here
        self._features = features
        self._limiter = limiter or trio.CapacityLimiter(THREADS_MAX)
        self._closing = trio.CapacityLimiter(THREADS_MAX)  # never behind what hangs
        self._timeout_s = timeout_s

    @classmethod
    async def open(
        cls,
        root: bytes,
        *,
        limiter: trio.CapacityLimiter | None = None,
        durable: bool = True,
        one_file_system: bool = False,
    ) -> LocalTree:
        """A tree whose features are those of the file system at `root`, which may be missing."""
        limiter = limiter or trio.CapacityLimiter(THREADS_MAX)
        features, device = await trio.to_thread.run_sync(
            _look_at, root, abandon_on_cancel=True, limiter=limiter
        )
        return cls(
            root,
            features=features,
            limiter=limiter,
            durable=durable,
            device=device if one_file_system else None,
        )

    @property
    def label(self) -> str:
        """See Tree."""
        return os.fsdecode(self.root.root)

    @property
    def features(self) -> Features:
        """See Tree."""
        return self._features

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call in a thread, which is left behind when the caller gives up or the time is over."""
        try:
            with trio.fail_after(self._timeout_s):
                return await self.wait(function, *args)
        except trio.TooSlowError:
            raise Unreachable(
                f"{shown(self.root.root)}: no answer in {self._timeout_s:g} s: is its disk alive?"
            ) from None

    async def wait(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Likewise, however long it takes."""
        return await trio.to_thread.run_sync(
            function, *args, abandon_on_cancel=True, limiter=self._limiter
        )

    async def finish(self, function: Callable[[*Ts], None], *args: *Ts) -> None:
        """Clean up in a thread, also when cancelled, and be left behind after a moment."""
        with trio.move_on_after(_CLOSE_S) as scope:
            scope.shield = True
            await trio.to_thread.run_sync(
                function, *args, abandon_on_cancel=True, limiter=self._closing
            )

    async def list(self, path: bytes, sink: PageSink) -> None:
        """See Tree."""
        listing = Listing(self.root, self.scanner, path)
        try:
            while page := await self.run(listing.page):
                await sink(page)
        finally:
            await self.finish(listing.close)

    async def list_many(
        self, paths: Sequence[bytes], nodes_max: int = PAGE_NODES
    ) -> Sequence[Listed]:
        """For each directory: all its nodes, or the error; None: more than `nodes_max`: list it.

        One hop to a thread and one walk for neighbours; in memory are `nodes_max` times `paths`.
        """
        return await self.wait(self.scanner.many, paths, nodes_max)

    async def stat(self, path: bytes) -> Node:
        """See Tree."""
        return await self.run(self.files.stat, path)

    async def read(self, path: bytes, node: Node, offset: int, length: int) -> bytes:
        """See Tree."""
        return await self.run(self.files.read, path, node, offset, length)

    async def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        """See Tree."""
        return await self.run(self.files.xattrs, path)

    async def data_ranges(self, path: bytes, node: Node) -> Sequence[tuple[int, int]]:
        """See Tree."""
        return await self.run(self.files.data_ranges, path, node)

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
        """See Tree. Its name is on the disk after `sync`, its bytes are before it has the name."""
        size = content.size
        draft = self.draft(path)
        publish = partial(draft.publish, replace=replace, durable=self.durable)
        try:
            if size <= _PART_BYTES and ranges is None:
                data = await _exactly(content, 0, size)
                return await self.wait(_write_whole, draft, data, publish, metadata, old)
            for start, length in [(0, size)] if ranges is None else ranges:
                for offset in range(start, start + length, _PART_BYTES):
                    data = await _exactly(
                        content, offset, min(_PART_BYTES, start + length - offset)
                    )
                    await self.wait(draft.write, data, offset)
            # fsync takes as long as the disk needs for the whole file.
            return await self.wait(publish, size, metadata, old)
        finally:
            await self.finish(draft.close)

    def draft(self, path: bytes, temporary: bytes = b"", *, new: bool = True) -> Draft:
        """A new file for `path`; nothing is done before it is first used. Close it.

        `new` false: go on with the temporary file that is there.
        """
        name = temporary or self.parts.new()
        return Draft(self.root, path, name, self.scanner.owners, self.touched.note, new=new)

    async def mkdir(self, path: bytes, metadata: Metadata) -> None:
        """See Tree. The root's own metadata are left as they are."""
        await self.run(self.files.mkdir, path, metadata)

    async def symlink(self, path: bytes, target: bytes, metadata: Metadata) -> None:
        """See Tree."""
        await self.run(self.files.symlink, path, target, metadata)

    async def hard_link(self, path: bytes, existing: bytes) -> None:
        """See Tree."""
        await self.run(self.files.hard_link, path, existing)

    async def special(self, path: bytes, node: Node, metadata: Metadata) -> None:
        """See Tree."""
        await self.run(self.files.special, path, node, metadata)

    async def set_metadata(self, path: bytes, metadata: Metadata) -> None:
        """See Tree."""
        await self.run(self.files.set_metadata, path, metadata)

    async def delete(self, path: bytes, node: Node) -> None:
        """See Tree. Of a directory, what dead writers left in it goes too."""
        await self.run(self.files.delete, path, node)

    async def rename(self, path: bytes, new_path: bytes) -> None:
        """See Tree."""
        await self.run(self.files.rename, path, new_path)

    @property
    def found_parts(self) -> bool:
        """Whether a listing has come by a part, dead or alive."""
        return self.scanner.found_parts

    async def clean(self, path: bytes) -> int:
        """Remove what dead writers left in one directory; how many files.

        Parts of this machine's ended processes at once, others after a week.
        """
        return await self.run(self.files.clean, path)

    async def sync(self) -> None:
        """See Tree. As long as the disk takes for all that is on its way to it."""
        await self.wait(self._sync)

    def _sync(self) -> None:
        with system_errors(self.root.root):
            self.touched.sync()

    async def close(self) -> None:
        """See Tree."""
        await self.finish(self.touched.close)


def _look_at(root: bytes) -> tuple[Features, int | None]:
    features = features_of(root)
    try:
        return features, os.stat(root).st_dev  # noqa: PTH116 - a path of bytes
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return features, None
        with system_errors(root):
            raise


async def _exactly(content: Content, offset: int, length: int) -> bytes:
    data = await content.read(offset, length) if length else b""
    if len(data) != length:
        raise Garbled(f"the source gave {len(data)} of {length} bytes at {offset}")
    return data


def _write_whole(
    draft: Draft,
    data: bytes,
    publish: Callable[[int, Metadata, Node | None], Node],
    metadata: Metadata,
    old: Node | None,
) -> Node:
    """In one hop to a thread, for a small file."""
    draft.write(data, 0)
    return publish(len(data), metadata, old)
