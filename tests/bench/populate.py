"""Fills a stopped daemon's state with many files, through the daemon's own library."""

from __future__ import annotations

import time
from pathlib import Path

from blockstore.disk import OsDisk
from blockstore.store import BlockStore
from ghostd.filemap import encode_segment
from ghostd.inodes import ROOT_INO, Inode, InodeRow
from ghostd.namespace import EpochChanges, Namespace
from ghostd.remote_rows import DirRow, ProjectionRow, VersionRow

_BATCH = 50_000
_SIZE = 4096


def populate(state: Path, name: str, folders: int, files: int) -> None:
    """Make folder `name` with `folders` folders of `files` files each; all show the same 4 KiB."""
    disk = OsDisk()
    store = BlockStore.open(state)
    content = bytes(range(256)) * (_SIZE // 256)
    (chunk,) = store.put([content])
    store.sync()
    store.close()
    namespace = Namespace.open(state, disk)
    try:
        _Filler(namespace, encode_segment(0, [(0, _SIZE, chunk, 0)])).fill(name, folders, files)
    finally:
        namespace.close()


def populate_projection(state: Path, name: str, url: str, folders: int, files: int) -> None:
    """Make a projection at `name`, all of it listed just now, with nothing fetched."""
    namespace = Namespace.open(state, OsDisk())
    try:
        _Filler(namespace, b"", url).fill(name, folders, files)
    finally:
        namespace.close()


class _Filler:
    """Epochs of many new inodes: of our own, all with one segment, or of a projection of `url`."""

    def __init__(self, namespace: Namespace, segment: bytes, url: str = "") -> None:
        self._namespace = namespace
        self._segment = segment
        self._url = url
        self._projection = 0
        self._meta = namespace.meta()
        self._ino = self._meta.next_ino
        self._cookie = self._meta.next_cookie
        self._epoch = self._meta.epoch
        self._count = self._meta.inodes
        self._changes = self._new_changes()

    def _new_changes(self) -> EpochChanges:
        return EpochChanges(self._epoch + 1, 0, 0, 0)

    def fill(self, name: str, folders: int, files: int) -> None:
        """Write everything."""
        self._projection = self._ino if self._url else 0
        top = self._add(int(ROOT_INO), name, "", children=folders, links=2 + folders)
        for number in range(folders):
            above = f"d{number:04}/"
            inner = self._add(top, above[:-1], above, children=files, links=2)
            for index in range(files):
                self._add(inner, f"f{index:06}", f"{above}f{index:06}", children=0, links=1)
        row = self._namespace.load_inode(int(ROOT_INO))
        assert row is not None
        root = Inode(row, stored=True)
        root.nlink += 1
        root.children += 1
        self._changes.inodes.append(root.row())
        self._apply()

    def _add(self, parent: int, name: str, key: str, *, children: int, links: int) -> int:
        """One inode. `key`: at the remote; a directory's is empty or ends in a slash."""
        directory = not key or key.endswith("/")
        ino = self._ino
        self._ino += 1
        self._count += 1
        now = time.time_ns()
        mode = 0o40755 if directory else 0o100644
        size = 0 if directory else _SIZE
        own = 0 if self._projection else size
        above = parent if directory else 0
        times = (now, now, now, now)
        shows = (ino, size, 0) if self._projection and not directory else (0, 0, 0)
        row: InodeRow = (
            *(ino, self._meta.generation, mode, 0, 0, links, 0, size, own),
            *times,
            *(above, children, 0, None, self._projection, *shows),
        )
        self._changes.inodes.append(row)
        self._changes.names.append((parent, name.encode(), self._cookie, ino))
        self._cookie += 1
        if self._projection:
            self._add_remote(ino, key, now, directory=directory)
        elif not directory:
            self._changes.segments.append((ino, 0, _SIZE, self._segment))
        if len(self._changes.inodes) >= _BATCH:
            self._apply()
        return ino

    def _add_remote(self, ino: int, key: str, now: int, *, directory: bool) -> None:
        remote = self._changes.remote
        if not key:
            day_ms = 86_400_000
            row = ProjectionRow(ino, self._url, "ro", "{}", day_ms, 1 << 20, 0, 0, now)
            remote.projections.append((ino, row))
        if directory:
            remote.dirs.append((ino, DirRow(key.encode(), now)))
        else:
            version = VersionRow(key.encode(), _SIZE, f'"{ino:032x}"', now)
            remote.versions.append((ino, version))

    def _apply(self) -> None:
        self._epoch += 1
        changes = self._changes
        changes.next_ino, changes.next_cookie = self._ino, self._cookie
        changes.inode_count = self._count
        self._namespace.apply(changes)
        self._namespace.checkpoint()
        self._changes = self._new_changes()
