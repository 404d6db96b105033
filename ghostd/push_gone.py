"""What a remote has and a projection shows no more: noted when it is deleted, moved or replaced.

A hidden name keeps a listing from showing it again; the row noted here says which version of it
was seen, so that a push deletes or replaces that one and no other.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from ghostd.cow_changes import in_place
from ghostd.errors import StaleHandle
from ghostd.inodes import FLAG_LOCAL, Inode
from ghostd.remote_names import local_name, remote_name
from ghostd.remote_rows import UNKNOWN, GoneRow
from ghostd.tree import Tree


class Standing(enum.Enum):
    """What is shown here where a remote has something that was taken away."""

    GONE = "gone"  # nothing, or something else in a directory's place
    TAKEN = "taken"  # something that was made or changed here
    BACK = "back"  # what the remote has: it was reverted, or removed over there


def key_of(tree: Tree, directory: Inode, name: bytes, inode: Inode) -> bytes | None:
    """The key at the remote of what a name leads to; None: it has none."""
    if inode.is_dir:
        row = tree.remote.dirs.get(inode.ino)
        return None if row is None else row.key
    if inode.base:
        version = tree.remote.versions.get(inode.base)
        return None if version is None else version.key
    if inode.target is None or inode.flags & FLAG_LOCAL:
        return None
    above, named = tree.remote.dirs.get(directory.ino), remote_name(name)
    return None if above is None or named is None else above.key + named.name


def note_gone(tree: Tree, directory: Inode, name: bytes, inode: Inode) -> None:
    """A name is about to lead elsewhere: remember what the remote has under it."""
    above = tree.remote.dirs.get(directory.ino)
    key = None if above is None else key_of(tree, directory, name, inode)
    if above is not None and key is not None and in_place(above.key, name, key):
        tree.remote.gone.set((inode.projection, key), _row(tree, directory, name, inode))


def _row(tree: Tree, directory: Inode, name: bytes, inode: Inode) -> GoneRow:
    version = tree.remote.versions.get(inode.base) if inode.base else None
    if version is None:
        return GoneRow(directory.ino, name, inode.ino, 0, "", 0, inode.target)
    state = version.size, version.etag, version.mtime_ns
    return GoneRow(directory.ino, name, inode.ino, *state, None)


def is_needed(tree: Tree, projection: int, key: bytes) -> bool:
    """Whether something that was moved away still shows what the remote has under this key."""
    row = tree.remote.gone.get((projection, key))
    if row is None or not row.ino:
        return False
    try:
        inode = tree.inode(row.ino)
    except StaleHandle:
        return False
    if not inode.nlink:
        return False
    if inode.is_dir:
        directory = tree.remote.dirs.get(inode.ino)
        return directory is not None and directory.key == key
    version = tree.remote.versions.get(inode.base) if inode.base else None
    return version is not None and version.key == key


def forget_gone(tree: Tree, projection: int, key: bytes) -> None:
    """Nothing is to be done about this key, nor about what was below it."""
    bare = key.removesuffix(b"/")
    for each in (bare, bare + b"/", *keys_below(tree, projection, bare + b"/")):
        if tree.remote.gone.get((projection, each)) is not None:
            tree.remote.gone.set((projection, each), None)


def keys_below(tree: Tree, projection: int, prefix: bytes) -> Iterator[bytes]:
    """Keys that were noted and begin with a prefix."""
    rows = tree.namespace.query(
        "SELECT key FROM gone WHERE projection = ? AND key > ? AND key < ?",
        (projection, prefix, prefix[:-1] + b"0"),  # the byte behind `/`
    )
    yield from (key for (key,) in rows)
    for number, key in list(tree.remote.gone.changed()):
        if number == projection and key.startswith(prefix) and key != prefix:
            yield key


def standing(tree: Tree, projection: int, key: bytes) -> Standing:
    """What is shown where `key` belongs."""
    parts = key.removesuffix(b"/").split(b"/")
    ino, prefix = projection, b""
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        is_dir = not last or key.endswith(b"/")
        prefix += part + (b"/" if is_dir else b"")
        shown = _shown_as(part, is_dir=is_dir)
        found = next((f for name in shown if (f := tree.find(ino, name))), None)
        if found is None:
            hidden = any(tree.remote.hidden.get((ino, name)) for name in shown)
            return Standing.GONE if hidden else Standing.BACK
        inode = tree.inode(found[1])
        local = bool(inode.flags & FLAG_LOCAL)
        if last:
            if not local:
                return Standing.BACK
            return Standing.TAKEN if inode.is_dir == is_dir else Standing.GONE
        row = tree.remote.dirs.get(inode.ino) if inode.is_dir else None
        if row is None or row.key != prefix:
            return Standing.GONE if local else Standing.BACK
        ino = inode.ino
    return Standing.BACK


def directory_at(tree: Tree, projection: int, key: bytes) -> Inode | None:
    """The directory that is shown where `key` belongs, if it shows what is under `key`."""
    ino, prefix = projection, b""
    for part in key.split(b"/")[:-1]:
        prefix += part + b"/"
        names = _shown_as(part, is_dir=True)
        found = next((f for name in names if (f := tree.find(ino, name))), None)
        row = None if found is None else tree.remote.dirs.get(found[1])
        if found is None or row is None or row.key != prefix:
            return None
        ino = found[1]
    return tree.inode(ino)


def _shown_as(part: bytes, *, is_dir: bool) -> list[bytes]:
    """The names that a part of a key may have here."""
    names = {local_name(part, is_dir, ()), local_name(part, is_dir, (part,))}
    return [name for name in names if name is not None]


async def adopt_hidden(tree: Tree, projection: int) -> None:
    """Note what was hidden without a version: by a daemon that did not note it, or a symlink.

    As of the last commit.
    """
    rows = tree.namespace.query(
        "SELECT h.parent, h.name FROM hidden h JOIN inodes i ON i.ino = h.parent"
        " WHERE i.projection = ?",
        (projection,),
    )
    for parent, name in rows:
        above, named = tree.remote.dirs.get(parent), remote_name(name)
        if above is None or named is None or tree.find(parent, name) is not None:
            continue
        key = above.key + named.name
        known = (tree.remote.gone.get((projection, each)) for each in (key, key + b"/"))
        if not any(known) and standing(tree, projection, key) is Standing.GONE:
            tree.remote.gone.set((projection, key), GoneRow(parent, name, 0, UNKNOWN, "", 0, None))
