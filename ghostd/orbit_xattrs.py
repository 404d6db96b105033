"""`user.orbit.*`: what is known of a projected file, as extended attributes that scripts can read.

They are computed when they are read, are not listed (so that `cp -a` does not copy them), and
cannot be set.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from ghostd.inodes import FLAG_LOCAL, Inode
from ghostd.projection import Projection
from ghostd.remote_rows import PART_BLOCKS
from ghostd.residency import Resident, base_shown, part_blocks, shown_of_blocks
from ghostd.tree import Tree
from ghostd.tree_walk import Seen, seen

PREFIX: Final = b"user.orbit."  # reserved, also outside of projections
RESIDENCY: Final = PREFIX + b"residency"  # LOCAL/SIZE in bytes, of files
URL: Final = PREFIX + b"url"  # of what is shown, in the remote's words
ETAG: Final = PREFIX + b"etag"  # of files of remotes that have etags
PINNED: Final = PREFIX + b"pinned"  # 0 or 1, of files
DIRTY: Final = PREFIX + b"dirty"  # 0 or 1: made or changed here
PUSHED: Final = PREFIX + b"pushed"  # 0 or 1: nothing of it has to be pushed; cow and rw
_PARTS_MAX = 16  # of a file that are looked at; beyond, the answer is an estimate from these


def orbit_xattr(
    tree: Tree, projection: Projection, inode: Inode, name: bytes, resident: Resident
) -> bytes | None:
    """The value of `name` for an inode of a projection; None: it has no such attribute.

    `resident` is the store's. Of a file of more than 1,024 blocks the residency is estimated from
    1,024 of them, spread evenly: `orbit-ctl residency` counts all.
    """
    if name == DIRTY:
        return b"1" if inode.flags & FLAG_LOCAL else b"0"
    if name == PUSHED:
        return (b"0" if inode.flags & FLAG_LOCAL else b"1") if projection.row.writable else None
    if name == URL:
        return _url(tree, projection, inode)
    if not inode.is_file:
        return None
    if name == RESIDENCY:
        missing = 0
        if projection.stored is None:
            missing = _missing(tree, projection, seen(inode, 0, b"", b""), resident)
        return b"%d/%d" % (inode.size - missing, inode.size)
    row = tree.remote.versions.get(inode.base) if inode.base else None
    if row is None:
        return None
    if name == PINNED:
        return b"1" if row.pinned else b"0"
    if name == ETAG and row.etag:
        return row.etag.encode(errors="surrogateescape")
    return None


def _url(tree: Tree, projection: Projection, inode: Inode) -> bytes | None:
    url = projection.url.encode(errors="surrogateescape")
    if inode.is_dir:
        directory = tree.remote.dirs.get(inode.ino)
        key = None if directory is None else directory.key
    else:
        version = tree.remote.versions.get(inode.base) if inode.base else None
        key = None if version is None else version.key
    if not key:
        return None if key is None else url
    return url.removesuffix(b"/") + b"/" + quote(key).encode()


def _missing(tree: Tree, projection: Projection, file: Seen, resident: Resident) -> int:
    """How many bytes of a file would have to be fetched."""
    if not file.base or not file.base_end:
        return 0
    size = projection.row.block_bytes
    parts = -(-file.base_end // (size * PART_BLOCKS))
    looked_at = range(parts)
    if parts > _PARTS_MAX:
        looked_at = range(parts // (2 * _PARTS_MAX), parts, parts // _PARTS_MAX)[:_PARTS_MAX]
    here = stretch = 0
    for part in looked_at:
        stretch += min(file.base_end - part * size * PART_BLOCKS, size * PART_BLOCKS)
        blocks = dict(part_blocks(tree, file.base, part))
        if not blocks:
            continue
        shown = shown_of_blocks(tree, file, list(blocks), size)
        flags = resident([blocks[number] for number, _ in shown])
        here += sum(count for (_, count), flag in zip(shown, flags, strict=True) if flag)
    if parts > _PARTS_MAX:
        here = file.base_end * here // stretch
    return max(0, base_shown(file) - here)
