"""Paths as the shell sees them, turned into paths of the mount, without touching the mount."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

_LINKS_MAX: Final = 40  # as the kernel


class OutsideMount(Exception):
    """The path does not lead into the mount."""


def under_mount(
    path: bytes,
    mount: bytes,
    cwd: Callable[[], bytes] = os.getcwdb,
    readlink: Callable[[bytes], bytes] = os.readlink,
) -> bytes:
    """Return the path from the root of the mount, beginning with `/`. Raises OutsideMount.

    Outside of the mount symbolic links are followed and `..` means what the kernel means by it. In
    the mount names are taken as they stand: looking at one there may wait for a remote.
    """
    mount = mount.rstrip(b"/") or b"/"
    shown = os.fsdecode(path)
    try:
        whole = path if path.startswith(b"/") else cwd() + b"/" + path
    except OSError as error:
        raise OutsideMount(f"{shown}: the current directory is gone ({error.strerror})") from error
    todo = whole.split(b"/")[::-1]
    at, links = b"/", 0
    while todo:
        part = todo.pop()
        if part in {b"", b"."}:
            continue
        if part == b"..":
            at = _above(at)
            continue
        at = at.rstrip(b"/") + b"/" + part
        if _inside(at, mount):
            continue
        try:
            target = readlink(at)
        except OSError:
            continue  # no link, or nothing at all: then it is outside, which is told below
        links += 1
        if links > _LINKS_MAX:
            raise OutsideMount(f"{shown}: too many symbolic links")
        at = b"/" if target.startswith(b"/") else _above(at)
        todo += target.split(b"/")[::-1]
    if not _inside(at, mount):
        raise OutsideMount(f"{shown} is not in the mount at {os.fsdecode(mount)}")
    return at[len(mount.rstrip(b"/")) :] or b"/"


def _inside(path: bytes, mount: bytes) -> bool:
    return path == mount or path.startswith(mount.rstrip(b"/") + b"/")


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or b"/"
