"""What differs between two snapshots: equal subtrees are skipped by their ids. Blocks: for threads.

The same bytes cut in another way have another recipe: such files are told as changed, although
only their chunks differ.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from syncer.recipes import Recipe, recipe_id
from syncer.snapshot_reader import SnapshotReader
from syncer.tree import NodeKind
from syncer.tree_objects import Entry


class Change(enum.StrEnum):
    """What happened to a node."""

    ADDED = "added"
    REMOVED = "removed"
    CONTENT = "content"  # bytes of a file, target of a symlink, number of a device
    METADATA = "metadata"  # anything else


class Difference(NamedTuple):
    """One node that differs."""

    path: bytes
    change: Change
    old: Entry | None
    new: Entry | None


def snapshot_diff(
    old: SnapshotReader, new: SnapshotReader, path: bytes = b""
) -> Iterator[Difference]:
    """Yield what became of the tree below `path`, in the order of a walk.

    Of an added or removed directory everything in it is told, too. Only what differs is read.
    Raises RemoteError; Missing where neither has the path.
    """
    before, after = _at(old, path), _at(new, path)
    if before is None and after is None:
        new.resolve(path)
    yield from _node(old, new, path, before, after)
    yield from _below(old, new, path, before, after)


def _at(reader: SnapshotReader, path: bytes) -> Entry | None:
    entry: Entry | None = reader.top
    for name in path.split(b"/") if path else []:
        entry = None if entry is None else reader.child(entry, name)
    return None if entry is None else entry._replace(name=path.rpartition(b"/")[2])


def _below(
    old: SnapshotReader,
    new: SnapshotReader,
    path: bytes,
    before: Entry | None,
    after: Entry | None,
) -> Iterator[Difference]:
    """Differences below two nodes of one path; without recursion: paths may be deep."""
    stack = [_pairs(old, new, before, after)]
    paths = [path + b"/" if path else b""]
    while stack:
        pair = next(stack[-1], None)
        if pair is None:
            stack.pop()
            paths.pop()
            continue
        one, other = pair
        either = one if one is not None else other
        assert either is not None
        here = paths[-1] + either.name
        yield from _node(old, new, here, one, other)
        if _is_directory(one) or _is_directory(other):
            stack.append(_pairs(old, new, one, other))
            paths.append(here + b"/")


def _is_directory(entry: Entry | None) -> bool:
    return entry is not None and entry.kind is NodeKind.DIRECTORY


def _pairs(
    old: SnapshotReader, new: SnapshotReader, before: Entry | None, after: Entry | None
) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Yield the entries of two directories by name; None where there is none."""
    olds = _entries(old, before)
    news = _entries(new, after)
    if before is not None and after is not None and before.child == after.child:
        return
    one, other = next(olds, None), next(news, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.name < other.name):
            yield one, None
            one = next(olds, None)
        elif one is None or other.name < one.name:
            yield None, other
            other = next(news, None)
        else:
            yield one, other
            one, other = next(olds, None), next(news, None)


def _entries(reader: SnapshotReader, entry: Entry | None) -> Iterator[Entry]:
    if entry is None or entry.kind is not NodeKind.DIRECTORY:
        return
    for page in reader.pages(entry):
        yield from page


def _node(
    old: SnapshotReader,
    new: SnapshotReader,
    path: bytes,
    before: Entry | None,
    after: Entry | None,
) -> Iterator[Difference]:
    if before is None or after is None or before.kind is not after.kind:
        if before is not None:
            yield Difference(path, Change.REMOVED, before, None)
        if after is not None:
            yield Difference(path, Change.ADDED, None, after)
    elif _content(before) != _content(after):
        yield Difference(path, Change.CONTENT, before, after)
    elif _attributes(old, before) != _attributes(new, after):
        yield Difference(path, Change.METADATA, before, after)


def _content(entry: Entry) -> Sequence[object]:
    if entry.kind is NodeKind.FILE:
        return (recipe_id(entry.recipe or Recipe(), entry.size),)
    return (entry.target, entry.rdev)


def _attributes(reader: SnapshotReader, entry: Entry) -> Sequence[object]:
    """What is compared of a node besides its content.

    The number of a hard link only matters by being there: it follows from the first name's path.
    """
    return (
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.owner,
        entry.group,
        entry.btime_ns,
        bool(entry.link),
        reader.xattrs(entry),
    )
