"""What a walk through two trees tells. Pure."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from syncer.remotes.errors import RemoteError
from syncer.tree import Node


class Side(enum.Enum):
    """One of the two trees."""

    SOURCE = "source"
    DESTINATION = "destination"


class Directory(NamedTuple):
    """A path at which at least one side has a directory."""

    path: bytes
    source_path: bytes  # another one where a symlink was followed
    source: Node | None
    destination: Node | None


class Enter(NamedTuple):
    """What is in a directory follows."""

    directory: Directory


class Pair(NamedTuple):
    """One name of the directory that was entered last, subdirectories that are entered aside."""

    path: bytes
    source_path: bytes
    source: Node | None
    destination: Node | None
    kept: bool = True  # False: left out of the job; what the destination has is not to be touched


class Equal(NamedTuple):
    """Files of the directory entered last that were found equal on the way."""

    files: int
    bytes: int


class Leave(NamedTuple):
    """Everything below a directory has been told."""

    directory: Directory
    complete: bool  # False: it itself could not be listed


class Problem(NamedTuple):
    """Something that could not be looked at, or not be brought over."""

    path: bytes
    side: Side
    error: RemoteError


Event = Enter | Pair | Equal | Leave | Problem
EventSink = Callable[[Sequence[Event]], Awaitable[None]]


def join(path: bytes, name: bytes) -> bytes:
    """The path of what is called `name` in a directory; an empty name is the directory itself."""
    return path + b"/" + name if path and name else path or name


def folded(name: bytes) -> bytes:
    """What a tree that ignores case takes for the same name."""
    return name.decode("utf-8", "surrogateescape").casefold().encode("utf-8", "surrogateescape")
