"""Snapshots as the control API sees them: `SnapshotCalls` over the running parts."""

from __future__ import annotations

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Final

from blockstore.errors import OrbitError
from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.errors import InvalidArgument
from ghostd.in_loop import InLoop
from ghostd.snapshots import Snapshots
from ghostd.snapshots_facade import (
    Keep,
    Pruned,
    Removed,
    Shown,
    SnapshotChange,
    SnapshotDiff,
    SnapshotEntry,
    SnapshotInfo,
    SnapshotPage,
    Take,
    Taken,
    Verdict,
)
from ghostd.threads import Threads
from ghostd.tree_walk import parts_of
from orbit_paths import path_to_text, text_to_path
from syncer.catalogue import Snapshot
from syncer.retention import KeepRules, plan_retention
from syncer.snapshot_diff import Difference, snapshot_diff
from syncer.snapshot_reader import SnapshotReader
from syncer.tree import NodeKind
from syncer.tree_objects import Entry

LIVE: Final = "live"
_DIFFS_MAX: Final = 8  # whose next pages can be asked for; the longest unused goes first


class SnapshotControl:
    """Implements `SnapshotCalls`. Made in the filesystem's loop; called from any thread."""

    def __init__(
        self,
        snapshots: Snapshots,
        store: BlockStore,
        threads: Threads,
        told: Callable[[], Awaitable[None]],
    ) -> None:
        """`told` returns when the kernel shows what has been done to names."""
        self._told = told
        self._loop = InLoop()
        self._snapshots = snapshots
        self._store = store
        self._threads = threads
        self._diffs: OrderedDict[str, Iterator[Difference]] = OrderedDict()

    # --- finding -------------------------------------------------------------------------------

    def snapshots(self, *, cursor: str | None, limit: int) -> SnapshotPage:
        """See SnapshotCalls."""
        return self._loop.wait(lambda: self._page(cursor, limit))

    async def _page(self, cursor: str | None, limit: int) -> SnapshotPage:
        found = list(reversed(await self._snapshots.all()))
        if cursor is not None:
            time_ns, _, name = cursor.partition(":")
            if not time_ns.isdecimal():
                raise InvalidArgument(f"{cursor!r} is no cursor of an earlier answer")
            found = [each for each in found if (each.time_ns, each.name) < (int(time_ns), name)]
        projected = await self._snapshots.projected()
        page = found[:limit]
        more = f"{page[-1].time_ns}:{page[-1].name}" if len(found) > limit else None
        return SnapshotPage(tuple(_info(each, projected) for each in page), more)

    def show(self, name: str, path: str, *, cursor: str | None, limit: int) -> Shown:
        """See SnapshotCalls."""
        return self._loop.wait(lambda: self._show(name, text_to_path(path), cursor, limit))

    async def _show(self, name: str, path: bytes, cursor: str | None, limit: int) -> Shown:
        snapshot = await self._snapshots.find(name)
        where = b"/".join(parts_of(path))
        after = b"" if cursor is None else text_to_path(cursor)

        def look() -> tuple[Entry, list[Entry]]:
            reader = SnapshotReader(self._store, snapshot.root)
            entry = reader.resolve(where)
            found: list[Entry] = []
            if entry.kind is NodeKind.DIRECTORY:
                for page in reader.pages(entry, after):
                    found += page
                    if len(found) > limit:
                        break
            return entry, found[: limit + 1]

        entry, found = await self._threads.run("read", look)
        page = found[:limit]
        more = path_to_text(page[-1].name) if len(found) > limit else None
        projected = await self._snapshots.projected()
        return Shown(
            _info(snapshot, projected),
            "/" + path_to_text(where),
            _entry(entry),
            tuple(_entry(each) for each in page),
            more,
        )

    # --- taking and removing ---------------------------------------------------------------------

    def take(self, wanted: Take) -> Taken:
        """See SnapshotCalls."""
        return self._loop.wait(lambda: self._take(wanted))

    async def _take(self, wanted: Take) -> Taken:
        began = time.monotonic()
        taken = await self._snapshots.take(
            text_to_path(wanted.path),
            name=wanted.name,
            tags=wanted.tags,
            expires_s=wanted.expires_s,
        )
        await self._told()
        return Taken(
            snapshot=_info(taken.snapshot, {}),
            directories_written=taken.tree.written,
            directories_left_out=tuple(path_to_text(path) for path in taken.tree.left_out),
            paused_s=taken.tree.paused_s,
            seconds=time.monotonic() - began,
        )

    def remove(self, names: Sequence[str], *, force: bool) -> Removed:
        """See SnapshotCalls."""
        return self._loop.wait(lambda: self._remove(names, force=force))

    async def _remove(self, names: Sequence[str], *, force: bool) -> Removed:
        # A wrong name removes nothing, whichever it is.
        found = {each.name: each for each in [await self._snapshots.find(name) for name in names]}
        projected = await self._snapshots.projected()
        await self._snapshots.remove(list(found.values()), force=force)
        await self._told()
        return Removed(tuple(_info(each, projected) for each in found.values()))

    def prune(self, keep: Keep, *, source: str, dry_run: bool) -> Pruned:
        """See SnapshotCalls."""
        return self._loop.wait(lambda: self._prune(keep, source, dry_run=dry_run))

    async def _prune(self, keep: Keep, source: str, *, dry_run: bool) -> Pruned:
        snapshots = await self._snapshots.all()
        if source:
            wanted = text_to_path(source)
            snapshots = [each for each in snapshots if os.fsencode(each.source) == wanted]
        rules = KeepRules(**asdict(keep))
        # Days begin where people here say that they do.
        zone = datetime.now().astimezone().tzinfo
        assert zone is not None
        projected = await self._snapshots.projected()
        verdicts, failed = [], []
        for each in plan_retention(snapshots, rules, now_ns=time.time_ns(), zone=zone):
            snapshot = each.snapshot
            reasons = each.reasons if each.stays else (each.why_not,)
            verdicts.append(Verdict(_info(snapshot, projected), each.stays, reasons))
            if not each.stays and not dry_run:
                try:
                    await self._snapshots.remove([snapshot])
                except OrbitError as error:
                    failed.append(f"{snapshot.name}: {error}")
        return Pruned(dry_run, tuple(verdicts), tuple(failed))

    # --- comparing -----------------------------------------------------------------------------

    def diff(
        self, old: str, new: str, path: str, *, cursor: str | None, limit: int
    ) -> SnapshotDiff:
        """See SnapshotCalls."""
        return self._loop.wait(lambda: self._diff(old, new, text_to_path(path), cursor, limit))

    async def _diff(
        self, old: str, new: str, path: bytes, cursor: str | None, limit: int
    ) -> SnapshotDiff:
        if cursor is None:
            differences = await self._begin_diff(old, new, b"/".join(parts_of(path)))
        elif cursor in self._diffs:
            differences = self._diffs.pop(cursor)
        else:
            raise InvalidArgument("that comparison has been given up: begin it again")

        def page() -> list[SnapshotChange]:
            found = []
            for each in differences:
                found.append(_change(each))
                if len(found) == limit:
                    break
            return found

        changes = await self._threads.run("read", page)
        if len(changes) < limit:
            return SnapshotDiff(tuple(changes), None)
        more = secrets.token_hex(8)
        self._diffs[more] = differences
        if len(self._diffs) > _DIFFS_MAX:
            self._diffs.popitem(last=False)
        return SnapshotDiff(tuple(changes), more)

    async def _begin_diff(self, old: str, new: str, path: bytes) -> Iterator[Difference]:
        roots: list[ChunkId] = []
        for selector in (old, new):
            if selector != LIVE:
                roots.append((await self._snapshots.find(selector)).root)
                continue
            snapshot = await self._snapshots.find(old if selector is new else new)
            roots.append((await self._snapshots.tree_now(self._snapshots.path_of(snapshot))).root)
        readers = [SnapshotReader(self._store, root) for root in roots]
        return snapshot_diff(readers[0], readers[1], path)


def _info(snapshot: Snapshot, projected: Mapping[str, Sequence[bytes]]) -> SnapshotInfo:
    return SnapshotInfo(
        name=snapshot.name,
        id=snapshot.id,
        taken_ns=snapshot.time_ns,
        host=snapshot.host,
        source=path_to_text(os.fsencode(snapshot.source)),
        tags=snapshot.tags,
        expires_ns=snapshot.expires_ns,
        root=snapshot.root.hex(),
        files=snapshot.sums.files,
        bytes=snapshot.sums.bytes,
        in_use=tuple(path_to_text(path) for path in projected.get(snapshot.name, ())),
    )


def _entry(entry: Entry) -> SnapshotEntry:
    return SnapshotEntry(
        name=path_to_text(entry.name),
        kind=entry.kind.value,
        bytes=entry.size,
        files=entry.files if entry.kind is NodeKind.DIRECTORY else None,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        target=None if entry.target is None else path_to_text(entry.target),
    )


def _change(difference: Difference) -> SnapshotChange:
    old, new = difference.old, difference.new
    return SnapshotChange(
        difference.change.value,
        "/" + path_to_text(difference.path),
        None if old is None else _entry(old),
        None if new is None else _entry(new),
    )
