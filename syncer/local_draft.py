"""A local file that is being written under a temporary name. Blocks: for threads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from syncer.local_bytes import write_all
from syncer.local_files import publish
from syncer.local_nodes import Owners, apply, node_of
from syncer.local_root import OPEN_NEW, LocalRoot, Spot, split
from syncer.remotes.errors import Changed
from syncer.remotes.local import shown, system_errors
from syncer.tree import Metadata, Node


class Draft:
    """A file that nobody sees under its own name before `publish`; `close` removes it else.

    For one thread at a time: others wait, so that `close` comes after whatever still runs.
    """

    def __init__(
        self,
        root: LocalRoot,
        path: bytes,
        temporary: bytes,
        owners: Owners,
        touch: Callable[[int], None],
        *,
        new: bool = True,
    ) -> None:
        """`touch` is called with the open directory before it is written to.

        `new` false: go on with a temporary file that is there.
        """
        self._touch = touch
        self._new = new
        self._kept: bytes | None = None
        self._root = root
        self._path = path
        self._temporary = temporary
        self._owners = owners
        self._lock = threading.Lock()
        self._open = contextlib.ExitStack()
        self._spot: Spot = (-1, b"")
        self._handle = -1
        self._published = False
        self._closed = False

    @contextlib.contextmanager
    def mine(self) -> Iterator[int]:
        """The open temporary file, and nobody else's meanwhile. Raises RemoteErrors."""
        with self._lock, system_errors(self._root.path(self._path)):
            if self._closed:
                raise Changed(f"{shown(self._root.path(self._path))}: writing it was given up")
            if self._handle < 0:
                self._begin()
            yield self._handle

    def _begin(self) -> None:
        self._spot = self._open.enter_context(self._root.spot(split(self._path), make=True))
        self._touch(self._spot[0])
        flags = OPEN_NEW if self._new else OPEN_NEW & ~(os.O_CREAT | os.O_EXCL)
        # Not readable by more than it will be.
        self._handle = os.open(self._temporary, flags, 0o600, dir_fd=self._spot[0])
        self._open.callback(os.close, self._handle)
        self._open.callback(self._remove)

    def keep(self, name: bytes) -> None:
        """Leave what is written under this name when it is closed, for whoever goes on with it."""
        self._kept = name

    def forget(self) -> None:
        """Remove it after all."""
        self._kept = None

    def settle(self) -> None:
        """Give it the name to keep now: it will outlive this process."""
        with self.mine():
            self._settle()

    def _settle(self) -> None:
        if self._kept not in {None, self._temporary}:
            folder = self._spot[0]
            os.rename(self._temporary, self._kept, src_dir_fd=folder, dst_dir_fd=folder)
            self._temporary = self._kept

    def _remove(self) -> None:
        if self._published:
            return
        with contextlib.suppress(OSError):
            if self._kept is not None:
                self._settle()
            else:
                os.unlink(self._temporary, dir_fd=self._spot[0])

    def write(self, data: bytes, offset: int) -> None:
        """Write bytes at an offset."""
        with self.mine() as handle:
            write_all(handle, data, offset)

    def publish(
        self, size: int, metadata: Metadata, old: Node | None, *, replace: bool, durable: bool
    ) -> Node:
        """Bring it to the disk, `size` bytes long, and give it its name. See Tree.write."""
        with self.mine() as handle:
            os.ftruncate(handle, size)  # a hole at the end
            if metadata.mode is None:
                metadata = metadata._replace(mode=0o666 & ~umask())
            apply(handle, metadata)
            if durable:
                os.fsync(handle)
            where = self._root.path(self._path)
            publish(self._spot, self._temporary, where, old, replace=replace)
            self._published = True
            name = self._path.rpartition(b"/")[2]
            return node_of(name, os.fstat(handle), self._owners)

    def close(self) -> None:
        """Let go of it; what was not published is removed."""
        with self._lock:
            self._closed = True
            self._open.close()


def umask() -> int:
    """This process's mask, without changing it: other threads make files meanwhile."""
    with open("/proc/self/status", "rb") as status:  # noqa: PTH123 - two lines are read
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o077
