"""A tree as values, so that two trees, or one before and after, can be compared attribute by
attribute.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any


def manifest(root: Path, *, links: bool = True) -> dict[str, dict[str, Any]]:
    """Every entry below `root` by its path: type, mode, owner, times, links, content, extended
    attributes.
    """
    found: dict[str, dict[str, Any]] = {}
    inodes: dict[int, str] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            found[key] = _entry(path)
            inode = os.lstat(path).st_ino
            if links and not stat.S_ISDIR(os.lstat(path).st_mode):
                found[key]["same as"] = inodes.setdefault(inode, key)
    return dict(sorted(found.items()))


def _entry(path: bytes) -> dict[str, Any]:
    info = os.lstat(path)
    entry: dict[str, Any] = {
        "mode": oct(info.st_mode),
        "owner": (info.st_uid, info.st_gid),
        "mtime": info.st_mtime_ns,
        "links": info.st_nlink,
    }
    entry["attributes"] = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(os.listxattr(path, follow_symlinks=False))
    }
    if stat.S_ISREG(info.st_mode):
        entry["size"] = info.st_size
        with open(path, "rb") as file:
            entry["content"] = hashlib.file_digest(file, "blake2b").hexdigest()
    elif stat.S_ISLNK(info.st_mode):
        entry["target"] = os.readlink(path)
    elif not stat.S_ISDIR(info.st_mode):
        entry["device"] = info.st_rdev
    return entry
