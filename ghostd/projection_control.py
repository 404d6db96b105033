"""Projections as the control API sees them: `ProjectionCalls` over the running parts."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

from blockstore.errors import OrbitError
from ghostd.attached_paths import AttachedPaths
from ghostd.cow_diff import Differ
from ghostd.cow_revert import Reverter
from ghostd.evicting import Evictor
from ghostd.facade import printable_path
from ghostd.in_loop import InLoop
from ghostd.listing_walk import look_up
from ghostd.projected import Projected
from ghostd.projection import Projection
from ghostd.projection_facade import (
    Attach,
    Change,
    Diff,
    Evicted,
    ProjectionInfo,
    ProjectionList,
    Refreshed,
    RemoteProblem,
    Residency,
    ResidencyReport,
    Reverted,
    Unpinned,
    WorkList,
    WorkProgress,
)
from ghostd.projections import Wanted
from ghostd.push_auto import Pushing
from ghostd.residency import ResidencyCount
from ghostd.tree_walk import Walk, find_path, joined, parts_of
from ghostd.warming import Works
from ghostd.writeback import Writeback
from orbit_paths import path_to_text, text_to_path
from syncer.remotes.errors import RemoteError

T = TypeVar("T")

_QUESTION_S: Final = 5.0  # for what the loop answers from memory
EXPIRED_NS: Final = 1  # `listed_ns` of a directory that was told to be listed again
_CURES: Final = {
    "ok": "",
    "stale": "old listings are shown; when the remote answers again they renew themselves",
    "failing": "what is here can be read; what is not waits for the remote or fails",
}


class ProjectionControl:
    """Implements `ProjectionCalls`. Made in the filesystem's loop; called from any thread."""

    def __init__(
        self,
        projected: Projected,
        writeback: Writeback,
        works: Works,
        invalidate: Callable[[int, bytes], None],
        told: Callable[[], Awaitable[None]],
        *,
        is_own: Callable[[Projection], bool] = lambda _: False,
        pushing: Callable[[int], Pushing] = lambda _: Pushing(),
    ) -> None:
        """`told` returns when the kernel shows what has been done to names.

        `is_own`: a projection is the daemon's own, and not listed.
        """
        self._told = told
        self._pushing = pushing
        self._is_own = is_own
        self._loop = InLoop()
        self._projected = projected
        self._writeback = writeback
        self._works = works
        self._tree = tree = projected.tree
        store, threads = writeback.store, writeback.threads
        projection_of = projected.projections.get
        self._paths = AttachedPaths(tree, threads)
        self._count = ResidencyCount(tree, store, threads, projection_of)
        self._evictor = Evictor(tree, writeback, store, threads, projection_of)
        self._differ = Differ(tree, writeback, threads, projection_of)
        self._reverter = Reverter(tree, writeback, projected.listings, self._differ, invalidate)

    # --- from memory, any thread ----------------------------------------------------------------

    def problems(self) -> tuple[RemoteProblem, ...]:
        """See ProjectionCalls."""
        found = []
        for projection in self._projected.projections.all():
            state = _state(projection)
            if state != "ok":
                found.append(
                    RemoteProblem(
                        url=projection.url,
                        state=state,
                        since_s=max(0.0, time.time() - projection.error_at),
                        reason=projection.error,
                        cure=_CURES[state],
                    )
                )
        return tuple(found)

    def counters(self) -> dict[str, float]:
        """See ProjectionCalls."""
        fetched, listings = self._projected.fetcher.stats, self._projected.listings
        cache = self._writeback.store.stats().fetched
        return {
            "fetch_requests": fetched.requests,
            "fetch_failures": fetched.failures,
            "fetched_blocks": fetched.blocks,
            "fetched_bytes": fetched.bytes,
            "fetched_blocks_unkept": fetched.unkept,
            "fetch_ahead_blocks": fetched.ahead_blocks,
            "listings": listings.listed,
            "listed_entries": listings.listed_entries,
            "cache_put_blocks": cache.put_blocks,
            "cache_new_blocks": cache.new_blocks,
            "cache_new_bytes": cache.new_bytes,
            "cache_hits": cache.hits,
            "cache_dropped_blocks": cache.dropped,
            "cache_evicted_blocks": cache.evicted,
            "cache_carried_blocks": cache.carried,
            "cache_refusals": cache.refused,
        }

    def gauges(self) -> dict[str, float]:
        """See ProjectionCalls."""
        cache = self._writeback.store.stats().fetched
        projections = self._projected.projections.all()
        return {
            "projections": len(projections),
            "projections_failing": sum(bool(each.error) for each in projections),
            "projections_stale": sum(each.stale for each in projections),
            "cache_packs": cache.packs,
            "cache_bytes": cache.bytes,
            "cache_blocks": cache.blocks,
            "works_running": sum(each.state == "running" for each in self._works.all().works),
        }

    def works(self) -> WorkList:
        """See ProjectionCalls."""
        return self._works.all()

    def work(self, number: int) -> WorkProgress:
        """See ProjectionCalls."""
        return self._works.get(number).progress()

    # --- through the loop ------------------------------------------------------------------------

    def projections(self) -> ProjectionList:
        """See ProjectionCalls."""

        async def look() -> ProjectionList:
            await trio.lowlevel.checkpoint()
            found = [p for p in self._projected.projections.all() if not self._is_own(p)]
            paths = [await self._paths.path_of(each.row.id) for each in found]
            return ProjectionList(tuple(map(self._info, found, paths)))

        return self._loop.wait(look, _QUESTION_S)

    def _info(self, projection: Projection, path: bytes) -> ProjectionInfo:
        row = projection.row
        state = _state(projection)
        now_ns = time.time_ns()
        directory = self._tree.remote.dirs.get(row.id)
        listed_ns = 0 if directory is None else directory.listed_ns
        unpushed, unpushed_bytes = self._projected.projections.unpushed(row.id)
        pushing = self._pushing(row.id)
        return ProjectionInfo(
            url=row.url,
            path=path_to_text(path),
            mode=row.mode,
            ttl_s=projection.ttl_s,
            block_bytes=row.block_bytes,
            options=json.loads(row.options),
            configured=bool(row.configured),
            age_s=max(0.0, (now_ns - row.created_ns) / 1e9),
            listed_age_s=max(0.0, (now_ns - listed_ns) / 1e9) if listed_ns > EXPIRED_NS else None,
            state=state,
            since_s=None if state == "ok" else max(0.0, time.time() - projection.error_at),
            reason=projection.error,
            cure=_CURES[state],
            left_out=projection.left_out,
            conflicts=len(projection.conflicts),
            unpushed=unpushed,
            unpushed_bytes=unpushed_bytes,
            pushing=pushing.busy,
            push_error=pushing.error,
            pushed_age_s=max(0.0, time.time() - pushing.pushed_at) if pushing.pushed_at else None,
        )

    def project(self, wanted: Attach) -> ProjectionInfo:
        """See ProjectionCalls."""

        async def attach() -> ProjectionInfo:
            path = text_to_path(wanted.path)
            projection = await self._projected.projections.project(
                Wanted(
                    url=wanted.url,
                    path=path,
                    mode=wanted.mode,
                    ttl_s=wanted.ttl_s,
                    block_bytes=wanted.block_bytes,
                    options=wanted.options,
                )
            )
            self._paths.remember(find_path(self._tree, path))
            return self._info(projection, b"/" + b"/".join(parts_of(path)))

        return self._loop.wait(attach)

    def unproject(self, path: str, *, force: bool) -> ProjectionInfo:
        """See ProjectionCalls."""

        async def detach() -> ProjectionInfo:
            where = text_to_path(path)
            projection = await self._projected.projections.unproject(where, force=force)
            await self._told()
            return self._info(projection, where)

        return self._loop.wait(detach)

    def refresh(self, path: str, *, recursive: bool) -> Refreshed:
        """See ProjectionCalls."""
        return self._loop.wait(
            lambda: self._then_told(self._refresh(text_to_path(path), recursive=recursive))
        )

    async def _refresh(self, path: bytes, *, recursive: bool) -> Refreshed:
        began = time.monotonic()
        tree, listings = self._tree, self._projected.listings
        top = await look_up(tree, listings, path)
        projection = self._projected.projections.get(top.projection)
        directories = files = 0
        waiting = ""
        if not top.is_dir:
            row = tree.remote.versions.get(top.base) if top.base else None
            if projection is not None and row is not None:
                await listings.renew(projection, row.key)
                files = 1
        else:
            found, walk = [top], Walk(tree, [top] if recursive else [])
            while found:
                for entry in found:
                    if entry.is_dir and tree.remote.dirs.get(entry.ino) is not None:
                        listings.expire(tree.inode(entry.ino))
                        directories += 1
                found = await walk.slice()
            if projection is not None:
                # The rest is asked for when it is looked at.
                try:
                    await listings.fresh(tree.inode(top.ino), patient=True)
                except RemoteError as error:
                    waiting = str(error)
        if not directories + files:
            raise NothingRemote(f"{printable_path(path)}: no remote has it; it lives here alone")
        return Refreshed(directories, files, waiting, time.monotonic() - began)

    def residency(self, paths: Sequence[str]) -> ResidencyReport:
        """See ProjectionCalls."""
        wanted = [text_to_path(path) for path in paths]
        found: list[Residency] = self._loop.wait(lambda: self._count.of(wanted))
        return ResidencyReport(tuple(found))

    def start_work(self, kind: str, paths: Sequence[str]) -> WorkProgress:
        """See ProjectionCalls."""
        wanted = [text_to_path(path) for path in paths]
        return self._loop.wait(lambda: self._works.start(kind, wanted)).progress()

    def stop_work(self, number: int) -> WorkProgress:
        """See ProjectionCalls."""
        return self._loop.wait(lambda: self._works.stop(number), _QUESTION_S).progress()

    def unpin(self, paths: Sequence[str]) -> Unpinned:
        """See ProjectionCalls."""
        wanted = [text_to_path(path) for path in paths]
        return self._loop.wait(lambda: self._evictor.unpin(wanted))

    def evict(self, paths: Sequence[str]) -> Evicted:
        """See ProjectionCalls."""
        wanted = [text_to_path(path) for path in paths]
        return self._loop.wait(lambda: self._evictor.evict(wanted))

    def diff(self, path: str, *, cursor: str | None, limit: int) -> Diff:
        """See ProjectionCalls."""
        return self._loop.wait(lambda: self._diff(text_to_path(path), cursor, limit))

    async def _diff(self, path: bytes, cursor: str | None, limit: int) -> Diff:
        projection, changes, more = await self._differ.page(path, cursor, limit)
        root = await self._paths.path_of(projection.row.id)
        return Diff(
            tuple(
                Change(
                    kind=change.kind,
                    path=path_to_text(change.path),
                    source=path_to_text(joined(root, change.key.removesuffix(b"/")))
                    if change.kind == "renamed" and change.key is not None
                    else None,
                    directory=change.is_dir,
                    bytes=change.size,
                    written=change.written,
                    conflict=change.ino in projection.conflicts,
                )
                for change in changes
            ),
            more,
        )

    def revert(self, path: str) -> Reverted:
        """See ProjectionCalls."""
        return self._loop.wait(lambda: self._then_told(self._reverter.revert(text_to_path(path))))

    async def _then_told(self, work: Awaitable[T]) -> T:
        done = await work
        await self._told()
        return done


class NothingRemote(OrbitError):
    """What was named lies in no projection, or was made here."""


def _state(projection: Projection) -> str:
    if not projection.error:
        return "ok"
    return "stale" if projection.stale else "failing"
