"""What the file system under a local folder can keep. Blocks: for threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from syncer import linux
from syncer.local_nodes import is_root
from syncer.local_root import OPEN_DIRECTORY, opened
from syncer.remotes.local import shown, system_errors
from syncer.tree import Features

ALL: Final = Features(
    write=True,
    symlinks=True,
    hard_links=True,
    specials=True,
    mode=True,
    owner=True,
    xattrs=True,
    holes=True,
    rename=True,
    conditional=False,
    local=True,
    tells_all=True,
)

_FAT: Final[Mapping[str, Any]] = {
    "symlinks": False,
    "hard_links": False,
    "specials": False,
    "mode": False,
    "owner": False,
    "xattrs": False,
    "holes": False,
    "case_sensitive": False,
}
# By `f_type` of statfs(2), see linux/magic.h; what is not here keeps everything.
_LACKS: Final[Mapping[int, Mapping[str, Any]]] = {
    0x4D44: {**_FAT, "mtime_resolution_ns": 2 * 10**9},  # vfat
    0x2011BAB0: {**_FAT, "mtime_resolution_ns": 10 * 10**6},  # exFAT
    0x5346544E: {"case_sensitive": False, "mtime_resolution_ns": 100},  # NTFS
    0x7366746E: {"case_sensitive": False, "mtime_resolution_ns": 100},  # NTFS, the newer driver
    0x482B: {"case_sensitive": False, "mtime_resolution_ns": 10**9},  # HFS+
    0x517B: {"owner": False, "specials": False, "case_sensitive": False},  # SMB
    0xFF534D42: {"owner": False, "specials": False, "case_sensitive": False},  # CIFS
    0xFE534D42: {"owner": False, "specials": False, "case_sensitive": False},  # SMB 2 and later
}

# Likewise; calls wait for a server, or for another process.
_SERVED: Final = frozenset(
    {
        0x517B,  # SMB
        0xFF534D42,  # CIFS
        0xFE534D42,  # SMB 2 and later
        0x6969,  # NFS
        0x01021997,  # 9P
        0x00C36400,  # Ceph
        0x0BD00BD0,  # Lustre
        0x5346414F,  # AFS
        0x65735546,  # FUSE
    }
)


def is_served(root: bytes) -> bool:
    """Whether more calls at a time make the file system at `root` faster, even from memory."""
    try:
        with opened(root, OPEN_DIRECTORY) as handle:
            return linux.file_system_magic(handle) in _SERVED
    except OSError:  # whoever works there says so
        return False


def features_of(root: bytes) -> Features:
    """What can be kept at `root`, or will be when it is made. Raises RemoteErrors."""
    nearest = root
    while not os.path.isdir(nearest) and nearest != b"/":  # noqa: PTH112 - a path of bytes
        nearest = os.path.dirname(nearest)  # noqa: PTH120
    with system_errors(root), opened(nearest, OPEN_DIRECTORY) as handle:
        space = os.fstatvfs(handle)
        lacks = _LACKS.get(linux.file_system_magic(handle), {})
        folds = bool(linux.inode_flags(handle) & linux.CASEFOLD)
    why_not = ""
    if space.f_flag & os.ST_RDONLY:
        why_not = f"{shown(nearest)} is on a file system that is mounted read-only"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        why_not = f"{shown(nearest)} cannot be written by this user"
    features = replace(
        ALL,
        write=not why_not,
        why_not=why_not,
        owner=is_root(),
        case_sensitive=not folds,
        name_bytes_max=space.f_namemax or ALL.name_bytes_max,
    )
    return replace(features, **lacks)


def free_bytes(root: bytes) -> int:
    """Bytes that this user may still write at `root`. Raises RemoteErrors."""
    with system_errors(root):
        space = os.statvfs(root)
    return space.f_bavail * space.f_frsize
