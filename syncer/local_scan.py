"""Listing local directories: one in pages, or many small ones in one go. Blocks: for threads."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from syncer.local_nodes import Owners, node_of
from syncer.local_parts import is_dead, is_part, process_start
from syncer.local_root import Directories, LocalRoot, split
from syncer.remotes.errors import OtherFileSystem, RemoteError, Unsupported
from syncer.remotes.local import shown, system_errors
from syncer.tree import Node

PAGE_NODES: Final = 2_000
_PART_START: Final = ".orbit-"

Listed = list[Node] | RemoteError | None


class Scanner:
    """Reads directories below a root. For any thread."""

    def __init__(self, root: LocalRoot, *, device: int | None = None) -> None:
        """`device`: directories on any other raise OtherFileSystem."""
        self._root = root
        self._device = device
        self.owners = Owners()
        self.found_parts = False  # somewhere below the root, alive or dead

    def nodes(self, handle: int, entries: Iterator[os.DirEntry[str]], limit: int) -> list[Node]:
        """The next nodes of an open directory, at most `limit`; parts are left out."""
        page: list[Node] = []
        owners, one, encoding = self.owners, node_of, sys.getfilesystemencoding()
        for entry in entries:
            name = entry.name
            encoded = name.encode(encoding, "surrogateescape")
            if name.startswith(_PART_START) and is_part(encoded):
                self.found_parts = True
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # deleted meanwhile
                continue
            target = None
            if stat.S_ISLNK(found.st_mode):
                with contextlib.suppress(OSError):  # no symlink any more: its target is unknown
                    target = os.readlink(encoded, dir_fd=handle)
            page.append(one(encoded, found, owners, target))
            if len(page) == limit:
                break
        return page

    def check(self, handle: int) -> None:
        """Raise OtherFileSystem for an open directory on another device than the one asked for."""
        if self._device is not None and os.fstat(handle).st_dev != self._device:
            raise OtherFileSystem("another file system is mounted here, and left out")

    def many(self, paths: Sequence[bytes], nodes_max: int) -> list[Listed]:
        """Each directory's nodes, or why not; None: more than `nodes_max` in it.

        Several in one call, because a call to a thread costs as much as forty entries.
        """
        found: list[Listed] = []
        with contextlib.closing(Directories(self._root)) as directories:
            for path in paths:
                try:
                    found.append(self._one(directories, path, nodes_max))
                except RemoteError as error:
                    found.append(error)
        return found

    def _one(self, directories: Directories, path: bytes, nodes_max: int) -> list[Node] | None:
        with system_errors(self._root.path(path)):
            handle = directories.at(path)
            self.check(handle)
            os.lseek(handle, 0, os.SEEK_SET)
            with os.scandir(handle) as entries:
                nodes = self.nodes(handle, entries, nodes_max + 1)
            return nodes if len(nodes) <= nodes_max else None


class Listing:
    """A directory that is being listed; nothing is open before the first page. `close` it.

    For one thread at a time: others wait.
    """

    def __init__(self, root: LocalRoot, scanner: Scanner, path: bytes) -> None:
        self._root = root
        self._scanner = scanner
        self._path = path
        self._lock = threading.Lock()
        self._open = contextlib.ExitStack()
        self._handle = -1
        self._entries: Iterator[os.DirEntry[str]] | None = None
        self._closed = False

    def page(self) -> list[Node]:
        """The next nodes; empty when there are none left."""
        with self._lock, system_errors(self._root.path(self._path)):
            if self._closed:  # given up before this thread had its turn
                return []
            if self._entries is None:
                try:
                    self._handle = self._open.enter_context(self._root.directory(split(self._path)))
                except NotADirectoryError:
                    where = shown(self._root.path(self._path))
                    raise Unsupported(f"{where} is no directory") from None
                self._scanner.check(self._handle)
                self._entries = self._open.enter_context(os.scandir(self._handle))
            return self._scanner.nodes(self._handle, self._entries, PAGE_NODES)

    def close(self) -> None:
        """Let go of the directory."""
        with self._lock:
            self._closed = True
            self._open.close()


def remove_dead_parts(handle: int, boot: bytes) -> int:
    """Remove what ended writers left in an open directory; how many. Raises OSError."""
    removed = 0
    os.lseek(handle, 0, os.SEEK_SET)
    with os.scandir(handle) as entries:
        names = [os.fsencode(each.name) for each in entries]
    for name in names:
        if not is_part(name):
            continue
        with contextlib.suppress(FileNotFoundError):
            changed_ns = os.stat(name, dir_fd=handle, follow_symlinks=False).st_ctime_ns
            age_s = time.time() - changed_ns / 10**9
            if is_dead(name, age_s, boot, process_start):
                os.unlink(name, dir_fd=handle)
                removed += 1
    return removed
