"""System calls that Python lacks, nodes of every kind, other users, the clock of a filesystem."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

KINDS = ("file", "directory", "symlink", "fifo", "socket", "character", "block")
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
USER, OTHER_USER, GROUP, OTHER_GROUP = 65_533, 65_532, 65_531, 65_530

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.telldir.restype = ctypes.c_long
_LIBC.fdopendir.restype = ctypes.c_void_p
_LIBC.readdir.restype = ctypes.c_void_p
_AT_FDCWD = -100


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(source: Path, target: Path, flags: int) -> None:
    """rename(2) with flags."""
    _checked(_LIBC.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags))


def link_descriptor(fd: int, target: Path) -> None:
    """One more name for an open file: linkat(2) that follows /proc/self/fd."""
    source = os.fsencode(f"/proc/self/fd/{fd}")
    _checked(_LIBC.linkat(_AT_FDCWD, source, _AT_FDCWD, os.fsencode(target), 0x400))


class DirectoryStream:
    """opendir, readdir, telldir, seekdir and rewinddir as C has them."""

    def __init__(self, path: Path) -> None:
        self._dir = ctypes.c_void_p(_LIBC.fdopendir(os.open(path, os.O_RDONLY | os.O_DIRECTORY)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _LIBC.closedir(self._dir)

    def read(self) -> tuple[int, bytes] | None:
        """Inode number and name of the next entry, or None at the end."""
        entry = _LIBC.readdir(self._dir)
        if not entry:
            return None
        # struct dirent of glibc on 64 bit: ino 8, off 8, reclen 2, type 1, name.
        return ctypes.c_uint64.from_address(entry).value, ctypes.string_at(entry + 19)

    def tell(self) -> int:
        """The position of the next entry."""
        return int(_LIBC.telldir(self._dir))

    def seek(self, position: int) -> None:
        """Go on from a position that `tell` gave."""
        _LIBC.seekdir(self._dir, ctypes.c_long(position))

    def rewind(self) -> None:
        """Begin again, with what is there now."""
        _LIBC.rewinddir(self._dir)


@contextlib.contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """The block must fail with one of these errnos."""
    wanted = "/".join(errno_name(number) for number in numbers)
    found = None
    try:
        yield
    except OSError as error:
        found = error.errno
    assert found is not None, f"succeeded instead of {wanted}"
    assert found in numbers, f"{errno_name(found)} instead of {wanted}"


def errno_name(number: int | None) -> str:
    """ENOENT for 2."""
    import errno

    return errno.errorcode.get(number or 0, str(number))


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, or the name of its errno: comparable between filesystems."""
    try:
        return function(*arguments)
    except OSError as error:
        return errno_name(error.errno)


def make_node(kind: str, path: Path) -> None:
    """Create a node of one of KINDS."""
    match kind:
        case "file":
            path.touch(0o644)
        case "directory":
            path.mkdir()
        case "symlink":
            path.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                here = os.open(path.parent, os.O_PATH)  # sun_path holds 108 bytes only
                sock.bind(f"/proc/self/fd/{here}/{path.name}")
                os.close(here)
        case "character":
            os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3))
        case "block":
            os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(7, 200))


def remove_node(path: Path) -> None:
    """The counterpart of `make_node`."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


def as_user(
    uid: int,
    function: Callable[..., Any],
    *arguments: Any,
    gid: int | None = None,
    groups: Sequence[int] = (),
    umask: int = 0o022,
) -> Any:
    """Call in a child process with other credentials; returns its value or raises its OSError."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: Any = ("bug", "nothing was returned")
        try:
            os.umask(umask)
            os.setgroups(list(groups))
            os.setresgid(*[uid if gid is None else gid] * 3)
            os.setresuid(uid, uid, uid)
            answer = ("value", function(*arguments))
        except OSError as error:
            answer = ("errno", error.errno)
        except BaseException as error:  # noqa: BLE001  reported by the parent
            answer = ("bug", repr(error))
        finally:
            os.write(writing, pickle.dumps(answer))
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        kind, value = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    if kind == "errno":
        raise OSError(value, os.strerror(value))
    assert kind == "value", value
    return value


def later_than(path: Path, time_ns: int) -> None:
    """Return when new timestamps in the folder `path` are later than `time_ns`.

    The clocks of filesystems tick coarsely.
    """
    probe = path / ".probe"
    while True:
        probe.touch()
        found = probe.lstat().st_ctime_ns
        probe.unlink()
        if found > time_ns:
            return


def permission_bits(path: Path) -> int:
    """The mode's lowest 12 bits."""
    return stat.S_IMODE(path.lstat().st_mode)
