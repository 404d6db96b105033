"""Names that a destination cannot hold, told while the plan is made. Pure.

What is reserved on Windows is from "Naming Files, Paths, and Namespaces" of its documentation; SMB
servers and the file systems of Windows refuse it, or store something else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from syncer.tree import Features

# By kind of place: a URL's scheme, or the type of a local file system.
_WINDOWS: Final = frozenset({
    "smb", "cifs", "smb3", "smbfs", "vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk",
})  # fmt: skip
_TEXT: Final = _WINDOWS | {"s3", "az", "azure", "gs", "gcs", "hfsplus"}

_RESERVED_CHARACTERS = re.compile(rb'[\x00-\x1f<>:"\\|?*]')
_RESERVED_NAMES = re.compile(
    rb"(?:con|prn|aux|nul|com[1-9]|lpt[1-9])(?:\..*)?", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class NameProblem:
    """A path that cannot be made, or not beside another one."""

    path: bytes
    sentence: str


class NameCheck:
    """What the names of one destination must be like."""

    def __init__(self, features: Features, kind: str = "") -> None:
        """`kind`: the URL's scheme, or the type of the file system; "": any name will do."""
        self._name_bytes_max = features.name_bytes_max
        self._path_bytes_max = features.path_bytes_max
        self._windows = kind in _WINDOWS
        self._text = kind in _TEXT

    def check(self, path: bytes) -> NameProblem | None:
        """What is wrong with a path; its parents have been checked."""
        name = path.rpartition(b"/")[2]
        problem = self._name(name)
        if not problem and len(path) > self._path_bytes_max:
            problem = (
                f"the path has {len(path)} bytes, and {self._path_bytes_max} can be held below the "
                "destination: shorten the names above it"
            )
        return NameProblem(path, problem) if problem else None

    def _name(self, name: bytes) -> str:
        if len(name) > self._name_bytes_max:
            return (
                f"the name has {len(name)} bytes, the destination holds {self._name_bytes_max}: "
                "shorten it"
            )
        if self._text and not name.isascii():
            try:
                name.decode()
            except UnicodeDecodeError:
                return "the name is no UTF-8, and the destination holds nothing else: rename it"
        if not self._windows:
            return ""
        if found := _RESERVED_CHARACTERS.search(name):
            return f"the destination's names cannot have {found[0].decode()!r}: rename it"
        if _RESERVED_NAMES.fullmatch(name):
            return "the name is that of a device on Windows: rename it"
        if name.endswith((b".", b" ")):
            return "Windows drops a dot or space at the end of a name: rename it"
        return ""
