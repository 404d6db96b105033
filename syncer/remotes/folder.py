"""A local folder, or a single file, as what `file:` remotes need of it. Blocks: for threads.

Keys are walked one component at a time from an open directory, and no symlink on the way is
followed: whatever others do to the tree meanwhile, nothing outside the root is reached.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

from syncer.linux import system_error
from syncer.local_parts import new_part
from syncer.local_root import (
    OPEN_FILE,
    OPEN_NEW,
    OPEN_PATH,
    LocalRoot,
    Spot,
    move,
    opened,
    read_all,
    sync_directory,
)
from syncer.remotes.errors import Changed, Exists, Garbled, Missing, Unsupported
from syncer.remotes.keys import components
from syncer.remotes.local import (
    entry_of,
    read_metadata,
    set_attributes,
    shown,
    system_errors,
)
from syncer.remotes.remote import ROOT, Attributes, Entry, Kind, Version

_PAGE_ENTRIES = 1000
_TRIES = 3  # to read a file whole while somebody writes it


class Folder:
    """The folder, or file, that a path names. Raises RemoteErrors."""

    def __init__(self, root: bytes) -> None:
        """`root` is absolute. It may be a symlink, or lead through some: its owner chose it."""
        self._root = LocalRoot(root, made_durable=True)

    def path(self, key: bytes) -> bytes:
        """For messages."""
        return self._root.path(key)

    def _directory(self, names: list[bytes]) -> AbstractContextManager[int]:
        """An open directory below the root."""
        return self._root.directory(names)

    def _spot(self, key: bytes, *, make: bool = False) -> AbstractContextManager[Spot]:
        """Where `key` is or would be; `make`: with its parents."""
        return self._root.spot(components(key), make=make)

    def stat(self, key: bytes) -> Entry:
        """See Remote."""
        with (
            system_errors(self.path(key)),
            self._spot(key) as (folder, name),
            opened(name, OPEN_PATH, folder) as handle,
        ):
            found = os.fstat(handle)
            kind = entry_of(key, found).kind
            if key.endswith(b"/") and kind is not Kind.DIRECTORY:
                raise system_error(errno.ENOTDIR)
            if kind is Kind.SYMLINK:
                return entry_of(key, found, os.readlink(b"", dir_fd=handle))
            return entry_of(key, found, metadata=read_metadata(handle))

    def read(self, key: bytes, version: Version, offset: int, length: int) -> bytes:
        """See Remote."""
        where = shown(self.path(key))
        try:
            with (
                system_errors(self.path(key)),
                self._spot(key) as (folder, name),
                opened(name, OPEN_FILE, folder) as handle,
            ):
                if entry_of(key, os.fstat(handle)).version != version:
                    raise Changed(f"{where} is not the version that was listed")
                data = read_all(handle, offset, length)
                if entry_of(key, os.fstat(handle)).version != version:
                    raise Changed(f"{where} changed while it was read")
        except Missing:
            raise Changed(f"{where} is gone") from None
        if len(data) != length:
            raise Garbled(f"{where} gave {len(data)} of {length} bytes at {offset}")
        return data

    def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        where = shown(self.path(key))
        with system_errors(self.path(key)), self._spot(key) as (folder, name):
            with opened(name, OPEN_PATH, folder) as found:
                if entry_of(key, os.fstat(found)).kind is not Kind.FILE:
                    raise Unsupported(f"{where} is no file")
            with opened(name, OPEN_FILE, folder) as handle:
                for _ in range(_TRIES):
                    entry = entry_of(key, os.fstat(handle), metadata=read_metadata(handle))
                    if entry.size > size_max:
                        raise Unsupported(f"{where} is larger than {size_max} bytes")
                    data = read_all(handle, 0, entry.size)
                    after = entry_of(key, os.fstat(handle))
                    if after.version == entry.version and len(data) == entry.size:
                        return entry, data
        raise Changed(f"{where} is being written")

    def open_directory(self, key: bytes) -> int:
        """An open directory, for the caller to close."""
        try:
            with self._directory(components(key)) as handle:
                return os.dup(handle)
        except NotADirectoryError:
            self.stat(key.removesuffix(b"/"))  # there is nothing at all: Missing
            raise Unsupported(f"{shown(self.path(key))} is no directory") from None

    def open_parent(self, key: bytes) -> Spot:
        """Where `key` is to be, with its parents made, for the caller to close."""
        with self._spot(key, make=True) as (folder, name):
            return os.dup(folder), name

    def rename(self, key: bytes, new_key: bytes, *, replace: bool) -> None:
        """See Remote."""
        if ROOT in {key, new_key}:
            raise Unsupported(f"{shown(self._root.root)}: the root stays where it is")
        slash = b"/" if key.endswith(b"/") else b""  # then the system insists on directories
        with system_errors(self.path(key)), self._spot(key) as (folder, name):
            os.stat(name + slash, dir_fd=folder, follow_symlinks=False)
            with system_errors(self.path(new_key)), self._spot(new_key) as (new_folder, new_name):
                try:
                    move((folder, name), (new_folder, new_name), replace=replace)
                except (IsADirectoryError, NotADirectoryError):  # one of them is a directory
                    raise system_error(errno.EEXIST) from None
                sync_directory(new_folder)

    def delete(self, key: bytes) -> None:
        """See Remote."""
        with system_errors(self.path(key)), self._spot(key) as (folder, name):
            if key.endswith(b"/"):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)

    def mkdir(self, key: bytes) -> None:
        """See Remote."""
        with system_errors(self.path(key)), self._spot(key) as (folder, name):
            os.mkdir(name, dir_fd=folder)

    def symlink(self, key: bytes, target: bytes) -> None:
        """See Remote."""
        with system_errors(self.path(key)), self._spot(key) as (folder, name):
            os.symlink(target, name, dir_fd=folder)

    def set_attributes(self, key: bytes, attributes: Attributes) -> None:
        """See Remote."""
        with (
            system_errors(self.path(key)),
            self._spot(key) as (folder, name),
            opened(name, OPEN_PATH, folder) as handle,
        ):
            set_attributes(handle, attributes)


class Listing:
    """A directory that is being listed; nothing is open before the first page. `close` it.

    For one thread at a time: others wait.
    """

    def __init__(self, folder: Folder, key: bytes) -> None:
        self._folder = folder
        self._key = key
        self._path = folder.path(key)
        self._lock = threading.Lock()
        self._open = contextlib.ExitStack()
        self._handle = -1
        self._names: Iterator[os.DirEntry[str]] | None = None
        self._closed = False

    def page(self) -> list[Entry]:
        """The next entries; empty when there are none left."""
        with self._lock, system_errors(self._path):
            if self._closed:  # given up before this thread had its turn
                return []
            if self._names is None:
                self._handle = self._folder.open_directory(self._key)
                self._open.callback(os.close, self._handle)
                self._names = self._open.enter_context(os.scandir(self._handle))
            page: list[Entry] = []
            for each in self._names:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    page.append(self._entry(os.fsencode(each.name)))
                if len(page) == _PAGE_ENTRIES:
                    break
            return page

    def _entry(self, name: bytes) -> Entry:
        key = b"".join(part + b"/" for part in components(self._key)) + name
        found = os.stat(name, dir_fd=self._handle, follow_symlinks=False)
        entry = entry_of(key, found)
        if entry.kind is Kind.SYMLINK:
            with contextlib.suppress(OSError):  # no symlink any more: its target is unknown
                return entry_of(key, found, os.readlink(name, dir_fd=self._handle))
        return entry

    def close(self) -> None:
        """Let go of the directory."""
        with self._lock:
            self._closed = True
            self._open.close()


class Draft:
    """A file that is being written under a temporary name; `close` it.

    For one thread at a time: others wait. Until `publish`, nobody sees it under its own name, and
    `close` removes it.
    """

    def __init__(self, folder: Folder, key: bytes, attributes: Attributes | None) -> None:
        self._folder = folder
        self._key = key
        self._path = folder.path(key)
        self._attributes = attributes or Attributes()
        self._lock = threading.Lock()
        self._open = contextlib.ExitStack()
        self._handle = -1
        self._spot: Spot = (-1, b"")
        self._temporary = b""
        self._published = False
        self._closed = False

    @contextlib.contextmanager
    def _mine(self) -> Iterator[None]:
        """Opened, and nobody else's meanwhile."""
        with self._lock, system_errors(self._path):
            if self._closed:
                raise Changed(f"{shown(self._path)}: writing it was given up")
            if self._handle < 0:
                self._begin()
            yield

    def _begin(self) -> None:
        self._spot = self._folder.open_parent(self._key)
        self._open.callback(os.close, self._spot[0])
        temporary = new_part()
        # Not readable by more than it will be.
        mode = 0o666 if self._attributes.mode is None else 0o600
        self._handle = os.open(temporary, OPEN_NEW, mode, dir_fd=self._spot[0])
        self._temporary = temporary
        self._open.callback(os.close, self._handle)
        self._open.callback(self._remove)

    def _remove(self) -> None:
        if not self._published:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._spot[0])

    def append(self, data: bytes) -> None:
        """Write the next bytes."""
        view = memoryview(data)
        with self._mine():
            while view:
                view = view[os.write(self._handle, view) :]

    def publish(self, if_version: Version | None, *, replace: bool) -> Entry:
        """Bring it to the disk and give it its name. See Remote.write."""
        with self._mine():
            set_attributes(self._handle, self._attributes)
            os.fsync(self._handle)
            if if_version is not None:
                self._check(if_version)
            folder = self._spot[0]
            try:
                move((folder, self._temporary), self._spot, replace=replace)
            except IsADirectoryError:
                raise Exists(f"{shown(self._path)} is a directory") from None
            self._published = True
            sync_directory(folder)
            return entry_of(self._key, os.fstat(self._handle), metadata=read_metadata(self._handle))

    def _check(self, version: Version) -> None:
        try:
            found = os.stat(self._spot[1], dir_fd=self._spot[0], follow_symlinks=False)
        except FileNotFoundError:
            raise Changed(f"{shown(self._path)} is gone") from None
        if entry_of(self._key, found).version != version:
            raise Changed(f"{shown(self._path)} is not the version that was to be replaced")

    def close(self) -> None:
        """Let go of it; what was not published is removed."""
        with self._lock:
            self._closed = True
            self._open.close()
