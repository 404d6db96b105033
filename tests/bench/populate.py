"""Fills a stopped daemon's state with many files, through the daemon's own library."""

from __future__ import annotations

import time
from pathlib import Path

from blockstore.disk import OsDisk
from blockstore.store import BlockStore
from ghostd.filemap import encode_segment
from ghostd.inodes import ROOT_INO, Inode, InodeRow
from ghostd.namespace import EpochChanges, Namespace

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


class _Filler:
    """Epochs of many new inodes."""

    def __init__(self, namespace: Namespace, segment: bytes) -> None:
        self._namespace = namespace
        self._segment = segment
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
        top = self._add(int(ROOT_INO), name, directory=True, children=folders, links=2 + folders)
        for number in range(folders):
            inner = self._add(top, f"d{number:04}", directory=True, children=files, links=2)
            for index in range(files):
                self._add(inner, f"f{index:06}", directory=False, children=0, links=1)
        row = self._namespace.load_inode(int(ROOT_INO))
        assert row is not None
        root = Inode(row, stored=True)
        root.nlink += 1
        root.children += 1
        self._changes.inodes.append(root.row())
        self._apply()

    def _add(self, parent: int, name: str, *, directory: bool, children: int, links: int) -> int:
        ino = self._ino
        self._ino += 1
        self._count += 1
        now = time.time_ns()
        mode = 0o40755 if directory else 0o100644
        size = 0 if directory else _SIZE
        above = parent if directory else 0
        times = (now, now, now, now)
        row: InodeRow = (
            *(ino, self._meta.generation, mode, 0, 0, links, 0, size, size),
            *times,
            *(above, children, 0, None, 0, 0, 0),
        )
        self._changes.inodes.append(row)
        self._changes.names.append((parent, name.encode(), self._cookie, ino))
        self._cookie += 1
        if not directory:
            self._changes.segments.append((ino, 0, _SIZE, self._segment))
        if len(self._changes.inodes) >= _BATCH:
            self._apply()
        return ino

    def _apply(self) -> None:
        self._epoch += 1
        changes = self._changes
        changes.next_ino, changes.next_cookie = self._ino, self._cookie
        changes.inode_count = self._count
        self._namespace.apply(changes)
        self._namespace.checkpoint()
        self._changes = self._new_changes()
