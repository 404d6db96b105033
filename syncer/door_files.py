"""Files as they go through the door: what requests say of them, and answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from syncer.door_protocol import (
    Head,
    Message,
    error_of,
    metadata_to_wire,
    node_from_wire,
    split,
    xattrs_from_wire,
)
from syncer.remotes.errors import RemoteError
from syncer.tree import Metadata, Node, Whole

READ_FILES: Final = 256  # small ones with one call
READ_BYTES: Final = 4 << 20

Outcomes = list[Node | RemoteError]
Wholes = list[Whole | RemoteError]


class SmallFile(NamedTuple):
    """A file whose bytes are at hand."""

    path: bytes
    data: bytes
    metadata: Metadata
    old: Node | None = None
    replace: bool = True


class CloneFile(NamedTuple):
    """A file that gets the content of another one in the namespace."""

    source_path: bytes
    node: Node  # as it was seen there
    path: bytes
    metadata: Metadata
    old: Node | None = None
    replace: bool = True


def item_of(path: str, size: int, metadata: Metadata, old: Node | None, *, replace: bool) -> Head:
    """A file that is to be written, for a head."""
    return {
        "path": path,
        "size": size,
        "metadata": metadata_to_wire(metadata),
        "old": None if old is None else old.token,
        "replace": replace,
    }


def outcomes_of(answer: Message) -> Outcomes:
    """What became of files that were to be written."""
    return [error_of(each) or node_from_wire(each["node"]) for each in answer.head["results"]]


def wholes_of(answer: Message) -> Wholes:
    """Files that were to be read. Raises Garbled."""
    told = answer.head["files"]
    parts = iter(split(answer.body, [each["length"] for each in told if "error" not in each]))
    found: Wholes = []
    for each in told:
        error = error_of(each)
        if error is not None:
            found.append(error)
        else:
            kept = each["xattrs"]
            found.append(
                Whole(bytes(next(parts)), None if kept is None else xattrs_from_wire(kept))
            )
    return found


def portions(files: Sequence[tuple[bytes, Node]]) -> Iterator[list[tuple[bytes, Node]]]:
    """As many as one call asks for."""
    some: list[tuple[bytes, Node]] = []
    size = 0
    for each in files:
        if some and (len(some) == READ_FILES or size + each[1].size > READ_BYTES):
            yield some
            some, size = [], 0
        some.append(each)
        size += each[1].size
    if some:
        yield some
