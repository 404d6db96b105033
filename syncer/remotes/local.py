"""What the local system says of files, as remotes say it: errors, entries, attributes. Blocks."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from syncer.remotes.errors import (
    Busy,
    Denied,
    Exists,
    Full,
    Missing,
    NotEmpty,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.remote import Attributes, Entry, Kind

USER = "user."  # the extended attributes that anybody may set; elsewhere named without it

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
}
_ERRORS: dict[int, type[RemoteError]] = {
    errno.ENOENT: Missing,
    errno.ENOTDIR: Missing,
    errno.ELOOP: Missing,  # a symlink where a directory was
    errno.EEXIST: Exists,
    errno.ENOTEMPTY: NotEmpty,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Denied,
    errno.ENOSPC: Full,
    errno.EDQUOT: Full,
    errno.EFBIG: Full,
    errno.EMFILE: Busy,
    errno.ENFILE: Busy,
    errno.ENOMEM: Busy,
    errno.EBUSY: Busy,
    errno.ETXTBSY: Busy,
    errno.EISDIR: Unsupported,
    errno.ENAMETOOLONG: Unsupported,
    errno.EOPNOTSUPP: Unsupported,
    errno.EXDEV: Unsupported,
    errno.EINVAL: Unsupported,
    errno.E2BIG: Unsupported,
    errno.EMLINK: Unsupported,
}


def shown(path: bytes) -> str:
    """A path for a message."""
    return ascii(os.fsdecode(path))


def remote_error(path: bytes, error: OSError) -> RemoteError:
    """What the system's error means. EIO and the like: the disk, or a network's, is away."""
    kind = _ERRORS.get(error.errno or 0, Unreachable)
    return kind(f"{shown(path)}: {error.strerror}")


@contextlib.contextmanager
def system_errors(path: bytes) -> Iterator[None]:
    """Raise what the system's errors mean."""
    try:
        yield
    except OSError as error:
        raise remote_error(path, error) from error


def entry_of(
    key: bytes,
    found: os.stat_result,
    target: bytes | None = None,
    metadata: Mapping[str, bytes] | None = None,
) -> Entry:
    """The entry that `stat` found. Its etag tells changes that put the old times back."""
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), Kind.OTHER)
    bare = key.removesuffix(b"/")
    return Entry(
        bare + b"/" if kind is Kind.DIRECTORY and bare else bare,
        kind,
        size=found.st_size if kind is Kind.FILE else 0,
        mtime_ns=found.st_mtime_ns,
        atime_ns=found.st_atime_ns,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        target=target,
        etag=f"{found.st_ino:x}-{found.st_ctime_ns:x}" if kind is Kind.FILE else "",
        metadata=metadata or {},
    )


def by_handle(handle: int) -> bytes:
    """A path that leads to what is open, whatever has been renamed; also for O_PATH handles."""
    return b"/proc/self/fd/%d" % handle


def read_metadata(handle: int) -> dict[str, bytes]:
    """The user's extended attributes; empty where there can be none."""
    path = by_handle(handle)
    found = {}
    try:
        for name in os.listxattr(path):
            if name.startswith(USER):
                with contextlib.suppress(OSError):  # gone meanwhile, or forbidden
                    found[name.removeprefix(USER)] = os.getxattr(path, name)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EACCES, errno.EPERM}:
            raise
    return found


def _write_metadata(path: bytes, old: Mapping[str, bytes], new: Mapping[str, bytes]) -> None:
    for name in old.keys() - new.keys():
        os.removexattr(path, USER + name)
    for name, value in new.items():
        os.setxattr(path, USER + name, value)


def set_attributes(handle: int, attributes: Attributes) -> None:
    """Set what is given."""
    path, old = by_handle(handle), os.fstat(handle)
    if attributes.uid is not None or attributes.gid is not None:
        uid = -1 if attributes.uid is None else attributes.uid
        os.chown(path, uid, -1 if attributes.gid is None else attributes.gid)
    if attributes.mode is not None:
        Path(os.fsdecode(path)).chmod(
            attributes.mode & 0o7777
        )  # after chown, which takes setuid away
    if attributes.metadata is not None:
        _write_metadata(path, read_metadata(handle), attributes.metadata)
    if attributes.mtime_ns is not None or attributes.atime_ns is not None:
        atime_ns = old.st_atime_ns if attributes.atime_ns is None else attributes.atime_ns
        mtime_ns = old.st_mtime_ns if attributes.mtime_ns is None else attributes.mtime_ns
        os.utime(path, ns=(atime_ns, mtime_ns))
