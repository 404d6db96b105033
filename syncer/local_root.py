"""A local folder that is never left: paths below it, walked without following a symlink. Blocks.

Paths are walked one component at a time from an open directory, and no symlink on the way is
followed: whatever others do to the tree meanwhile, nothing outside the root is reached.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from syncer import linux
from syncer.remotes.errors import Unreachable, Unsupported
from syncer.remotes.local import shown

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OPEN_BELOW: Final = OPEN_DIRECTORY | os.O_NOFOLLOW
OPEN_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what was a file when it was listed may be a pipe that nobody writes to.
OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
OPEN_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_HANDLES_MAX: Final = 32  # open directories of one Directories; a batch mostly stays in a few

Spot = tuple[int, bytes]  # an open directory and a name in it


@contextlib.contextmanager
def opened(name: bytes, flags: int, folder: int | None = None, mode: int = 0) -> Iterator[int]:
    """What `name` is, open meanwhile."""
    handle = os.open(name, flags, mode, dir_fd=folder)
    try:
        yield handle
    finally:
        os.close(handle)


def move(old: Spot, new: Spot, *, replace: bool) -> None:
    """Rename atomically; `replace`: over what is there, else EEXIST."""
    if replace:
        os.rename(old[1], new[1], src_dir_fd=old[0], dst_dir_fd=new[0])
        return
    try:
        linux.rename_new(old[0], old[1], new[0], new[1])
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOSYS}:
            raise
        # Network file systems know no such flag, but links, which never replace.
        os.link(old[1], new[1], src_dir_fd=old[0], dst_dir_fd=new[0], follow_symlinks=False)
        os.unlink(old[1], dir_fd=old[0])


def sync_directory(handle: int) -> None:
    """Bring the names in a directory to the disk."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems have no such thing
            raise


def read_all(handle: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes, fewer only at the file's end."""
    data = os.pread(handle, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    while parts[-1] and length:  # the kernel gives 2 GiB at most
        offset += len(parts[-1])
        length -= len(parts[-1])
        parts.append(os.pread(handle, length, offset))
    return b"".join(parts)


def split(path: bytes) -> list[bytes]:
    """The names in a tree's path; empty for the root. Raises Unsupported for what is no path."""
    names = path.split(b"/") if path else []
    for name in names:
        if name in {b"", b".", b".."} or b"\0" in name:
            raise Unsupported(f"{path!r}: no file can be called {name!r}")
    return names


class LocalRoot:
    """The folder, or file, at the root of a tree."""

    def __init__(self, root: bytes, *, made_durable: bool = False) -> None:
        """`root` is absolute. It may be a symlink, or lead through some: its owner chose it.

        `made_durable`: directories that are made on the way are on the disk at once.
        """
        self.root = root
        self.made_durable = made_durable

    def path(self, path: bytes) -> bytes:
        """For messages."""
        return self.root.rstrip(b"/") + b"/" + path if path else self.root

    def open(self) -> int:
        """The open root. Raises Unreachable when it is gone."""
        try:
            return os.open(self.root, OPEN_DIRECTORY)
        except FileNotFoundError:
            # Not Missing: as far as anybody knows, nothing below it has been deleted.
            where = shown(self.root)
            raise Unreachable(f"{where} is not there: is its disk mounted?") from None

    @contextlib.contextmanager
    def directory(self, names: Sequence[bytes], *, make: bool = False) -> Iterator[int]:
        """An open directory below the root; `make`: with what is missing."""
        here = self.open()
        try:
            for name in names:
                below = self.below(here, name, make=make)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    @contextlib.contextmanager
    def spot(self, names: Sequence[bytes], *, make: bool = False) -> Iterator[Spot]:
        """Where the names lead to, or would; `make`: with what is missing above it."""
        if not names:
            folder, name = os.path.split(os.path.realpath(self.root))
            with opened(folder, OPEN_DIRECTORY) as handle:
                yield handle, name or b"."
        else:
            with self.directory(names[:-1], make=make) as handle:
                yield handle, names[-1]

    def below(self, here: int, name: bytes, *, make: bool) -> int:
        """The directory `name` in an open one; `make`: where it is missing. Raises OSError."""
        try:
            return os.open(name, OPEN_BELOW, dir_fd=here)
        except FileNotFoundError:
            if not make:
                raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=here)
            if self.made_durable:
                sync_directory(here)
        return os.open(name, OPEN_BELOW, dir_fd=here)


class Directories:
    """Open directories of one tree, for work on many files: neighbours are opened once. Close it.

    For one thread. What is renamed meanwhile stays open as what it was.
    """

    def __init__(self, root: LocalRoot, touch: Callable[[int], None] | None = None) -> None:
        """`touch` is called with each directory when it has been opened."""
        self._root = root
        self._touch = touch
        self._open: OrderedDict[bytes, int] = OrderedDict()  # by path; least recently used first

    def at(self, path: bytes, *, make: bool = False) -> int:
        """The open directory, until the next call. Raises OSError, Unreachable, Unsupported."""
        here = self._open.get(path)
        if here is not None:
            self._open.move_to_end(path)
            return here
        if not path:
            return self._keep(path, self._root.open())
        above, _, name = path.rpartition(b"/")
        if name in {b"", b".", b".."} or b"\0" in name or path.startswith(b"/"):
            raise Unsupported(f"{path!r}: no file can be called {name!r}")
        if above.count(b"/") < _HANDLES_MAX // 2:
            here = self.at(above, make=make)
            return self._keep(path, self._root.below(here, name, make=make))
        # Deeper than what is kept open at a time, and than what recursion should be.
        with self._root.directory(split(path), make=make) as handle:
            return self._keep(path, os.dup(handle))

    def spot(self, path: bytes, *, make: bool = False) -> Spot:
        """Where a file is or would be; the directory is open until the next call."""
        above, _, name = path.rpartition(b"/")
        if name in {b"", b".", b".."} or b"\0" in name:
            raise Unsupported(f"{path!r}: no file can be called {name!r}")
        return self.at(above, make=make), name

    def _keep(self, path: bytes, handle: int) -> int:
        if len(self._open) >= _HANDLES_MAX:
            os.close(self._open.popitem(last=False)[1])
        self._open[path] = handle
        if self._touch is not None:
            self._touch(handle)
        return handle

    def open_file(self, path: bytes) -> int:
        """The file, open for reading; for the caller to close."""
        if not path:  # the root itself is a file, or a symlink to one: its owner chose it
            return os.open(self._root.root, OPEN_FILE & ~os.O_NOFOLLOW)
        folder, name = self.spot(path)
        return os.open(name, OPEN_FILE, dir_fd=folder)

    def close(self) -> None:
        """Let go of all."""
        while self._open:
            os.close(self._open.popitem()[1])
