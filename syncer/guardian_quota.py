"""What a user's disk quota leaves, by quotactl(2). Blocks for a moment."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

_GET_QUOTA = 0x800007 << 8  # Q_GETQUOTA for USRQUOTA
_BLOCK_LIMITS = 1  # QIF_BLIMITS
_SPACE = 2  # QIF_SPACE
_INODE_LIMITS = 4  # QIF_ILIMITS
_INODES = 8  # QIF_INODES
_LIMIT_UNIT = 1024  # bytes


class _Dqblk(ctypes.Structure):
    """struct if_dqblk of linux/quota.h."""

    _fields_ = (
        ("bhardlimit", ctypes.c_uint64),
        ("bsoftlimit", ctypes.c_uint64),
        ("curspace", ctypes.c_uint64),
        ("ihardlimit", ctypes.c_uint64),
        ("isoftlimit", ctypes.c_uint64),
        ("curinodes", ctypes.c_uint64),
        ("btime", ctypes.c_uint64),
        ("itime", ctypes.c_uint64),
        ("valid", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Left:
    """What may still be used; None: no limit."""

    bytes: int | None = None
    files: int | None = None


def left_of(found: _Dqblk) -> Left:
    """What the kernel's answer leaves up to the hard limits."""
    space = files = None
    if found.valid & _BLOCK_LIMITS and found.valid & _SPACE and found.bhardlimit:
        space = max(0, found.bhardlimit * _LIMIT_UNIT - found.curspace)
    if found.valid & _INODE_LIMITS and found.valid & _INODES and found.ihardlimit:
        files = max(0, found.ihardlimit - found.curinodes)
    return Left(space, files)


def quota_left(device: bytes, uid: int) -> Left:
    """What the user may still write on the file system of a block device.

    No limits where there are none, the file system has no quotas, or nobody may ask.
    """
    if uid == 0 or not device.startswith(b"/"):
        return Left()  # root is not bound by them
    found = _Dqblk()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.quotactl(_GET_QUOTA, os.fsencode(device), uid, ctypes.byref(found)) != 0:
        return Left()
    return left_of(found)
