"""POSIX access control lists as the kernel stores them in `system.posix_acl_access` and `_default`.

Format (linux/posix_acl_xattr.h): a 4-byte version, 2, then 8 bytes an entry: tag, permissions, id;
little-endian. The rules are those of acl(5). The kernel checks permissions and the validity of what
users set; here lists are kept in step with modes. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True, slots=True)
class AclEntry:
    """One line of a list: who (tag and id), and rwx as three bits."""

    tag: int
    permissions: int
    id: int


def decode(value: bytes) -> list[AclEntry]:
    """The entries of an attribute's value. Raises ValueError where it is none."""
    if len(value) < 4 or (len(value) - 4) % 8 or _HEADER.unpack_from(value)[0] != _VERSION:
        raise ValueError("not a POSIX ACL of version 2")
    return [AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[4:])]


def encode(entries: list[AclEntry]) -> bytes:
    """The inverse of `decode`."""
    return _HEADER.pack(_VERSION) + b"".join(
        _ENTRY.pack(entry.tag, entry.permissions, entry.id) for entry in entries
    )


def minimal(entries: list[AclEntry]) -> bool:
    """Whether the list says no more than a mode does."""
    return all(entry.tag in (USER_OBJ, GROUP_OBJ, OTHER) for entry in entries)


def _group_class(entries: list[AclEntry]) -> int:
    """The tag of the entry that the group bits of a mode stand for."""
    return MASK if any(entry.tag == MASK for entry in entries) else GROUP_OBJ


def mode_of(entries: list[AclEntry], mode: int) -> int:
    """`mode` with the permissions that the list grants."""
    shifts = {USER_OBJ: 6, _group_class(entries): 3, OTHER: 0}
    bits = 0
    for entry in entries:
        if entry.tag in shifts:
            bits |= (entry.permissions & 7) << shifts[entry.tag]
    return mode & ~0o777 | bits


def changed_mode(entries: list[AclEntry], mode: int) -> list[AclEntry]:
    """The list after chmod to `mode`."""
    shifts = {USER_OBJ: 6, _group_class(entries): 3, OTHER: 0}
    return [
        AclEntry(e.tag, mode >> shifts[e.tag] & 7, e.id) if e.tag in shifts else e for e in entries
    ]


def inherited(default: list[AclEntry], mode: int) -> tuple[list[AclEntry], int]:
    """The access list and mode of a new entry in a directory with a default list.

    `mode` is what the creator asked for, the umask not applied.
    """
    shifts = {USER_OBJ: 6, _group_class(default): 3, OTHER: 0}
    entries = [
        AclEntry(e.tag, e.permissions & (mode >> shifts[e.tag]) & 7, e.id) if e.tag in shifts else e
        for e in default
    ]
    return entries, mode_of(entries, mode)
