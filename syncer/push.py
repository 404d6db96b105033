"""Push: what was changed here in a projection goes to its remote.

The changes are in the namespace and stay there until the remote has them: a push that ends
anywhere is run again. Directories first, then what was renamed (what one file is based on must not
be replaced by another), then content, then what was deleted, at last directories' attributes.

A file is pushed as one state of it: it is read under a token, which holds as long as nobody changes
it. Where the remote has something else than was seen here it is a conflict, unless it is what we
would write: then an earlier push was cut off before it could say so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Final

import trio

from syncer.door import Door, DoorTree
from syncer.engine import Run
from syncer.events import shown
from syncer.guidance import check, refuse_errors
from syncer.location import LocationKind, parse
from syncer.options import OnConflict
from syncer.push_changes import Change, LocalChanged, Opened, PushDoor, Side
from syncer.push_conflicts import Conflicts
from syncer.push_deletions import Deletions
from syncer.push_files import Files
from syncer.push_plan import (
    Act,
    decide,
    may_rename_whole,
)
from syncer.push_preview import Preview
from syncer.push_run import BaseGone, PushRun, Take
from syncer.remote_tree import RemoteTree
from syncer.remotes.errors import (
    TRANSIENT,
    Changed,
    Exists,
    RemoteError,
    Unsupported,
)
from syncer.remotes.remote import Attributes, Kind, Remote

_TRIES: Final = 4  # for a file that is changed while it is pushed, here or there
_AGAIN_S: Final = 0.1  # a file that is being written gets a moment


async def run_push(run: Run) -> None:
    """See engine.Runner."""
    context = run.context
    location = parse(run.spec.source, b"/")
    mount = context.mount
    if (
        not isinstance(context.door, Door)
        or mount is None
        or location.kind is not LocationKind.LOCAL
        or not (location.path + b"/").startswith(mount + b"/")
    ):
        raise Unsupported(f"{location} is not below the daemon's mount: push what lies there")
    side = PushDoor(context.door)
    opened = await side.open(location.path.removeprefix(mount).strip(b"/"))
    run.report.destination = opened.url
    remote = await context.open_remote(opened.url, opened.options)
    try:
        if remote.capabilities.write:  # else it is said what the remote itself says
            ends = DoorTree(context.door, b"").features, RemoteTree(remote).features
            for each in refuse_errors(check(run.spec, *ends)):
                run.notice(each.sentence)
        await Push(run, side, opened, remote, take=run.limit.take).carry_out()
    finally:
        with trio.CancelScope(shield=True):
            await remote.close()


class Push:
    """One run."""

    def __init__(
        self,
        run: Run,
        side: Side,
        opened: Opened,
        remote: Remote,
        *,
        take: Take | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._push = PushRun(run, side, opened, remote, take=take)
        self._deletions = Deletions(self._push)
        self._files = Files(self._push, self._deletions)
        self._conflicts = Conflicts(self._push, self._files, now)

    async def carry_out(self) -> None:
        """From the first directory to the last deletion. Raises RemoteError, OrbitError."""
        if not self._push.can.write:
            reason = self._push.can.write_reason or "it takes no changes"
            raise Unsupported(f"{self._push.opened.url} cannot be written: {reason}")
        meter = self._push.meter
        if self._push.run.dry_run:
            await Preview(
                self._push.run,
                self._push.side,
                self._push.opened,
                self._push.remote,
                self._push.tell,
            ).show()
            return
        try:
            meter.phase = "making directories"
            await self._directories()
            meter.phase = "renaming"
            await self._moves()
            meter.phase = "pushing"
            await self._contents()
            meter.planned = True
            meter.phase = "deleting"
            await self._deletions.below(None)
            meter.phase = "finishing"
            await self._directory_attributes()
        except* TRANSIENT as away:
            self._push.failed(b"", away.exceptions[0])

    # --- directories -----------------------------------------------------------------------------

    async def _directories(self) -> None:
        """Make what is missing. What is in a moved one becomes changes of its own: look again."""
        seen: set[int] = set()
        again = True
        while again:
            again = False
            await self._push.find_moved()
            async with aclosing(self._push.side.changes(self._push.opened, "directories")) as found:
                async for change in found:
                    if change.ino in seen or not change.settled:
                        continue
                    act, reason = decide(change, self._push.can, self._push.options)
                    if act is Act.ATTRIBUTES:
                        continue
                    seen.add(change.ino)
                    if act is Act.REFUSE:
                        self._push.failed(change.path, reason, change.ino)
                        continue
                    again = True
                    await self._push.patient(change, lambda: self._make(change))  # noqa: B023  awaited
        async with aclosing(self._push.side.changes(self._push.opened, "directories")) as found:
            async for change in found:
                if not change.settled and change.ino not in seen:
                    self._push.failed(
                        change.path, "the directory above could not be made", change.ino
                    )

    async def _make(self, change: Change) -> None:
        goal = change.goal
        assert goal is not None
        if await self._rename_whole(change, goal):
            return
        if change.blocked:  # a file was there
            await self._deletions.clear(goal.removesuffix(b"/"))
        if change.replaces is not None:  # another directory was: what went with it goes now
            await self._deletions.below(goal, directories=False)
        new = True
        if self._push.can.mkdir:
            try:
                await self._push.remote.mkdir(goal)
                self._push.report.directories_made += 1
                self._push.tell("directory.made", shown(change.path))
                await self._push.audit("directory.made", change.path)
            except Exists:
                entry = await self._push.look(goal)
                if entry is None or entry.kind is not Kind.DIRECTORY:
                    beside = await self._conflicts.directory(change)
                    if beside is not None:
                        await self._make(beside)
                    return
                new = False
        await self._push.side.made(change, new=new)

    async def _rename_whole(self, change: Change, goal: bytes) -> bool:
        """Rename a moved directory at the remote, all of it; False: its entries go one by one."""
        if not may_rename_whole(change, self._push.can):
            return False
        assert change.key is not None
        source, target = await self._push.look(change.key), await self._push.look(goal)
        gone = source is None  # renamed, by a push that was cut off
        there = target if gone else source
        if there is None or there.kind is not Kind.DIRECTORY or (target and not gone):
            return False
        if not await self._push.side.renaming(self._push.opened, change, gone=gone):
            return False
        if not gone:
            try:
                await self._push.remote.rename(change.key, goal, replace=False)
            except TRANSIENT:
                raise
            except RemoteError:
                return False  # what is in the way of it is told of the entries
        await self._push.side.renamed(change)
        self._push.report.directories_made += 1
        self._push.tell("directory.made", shown(change.path), "renamed")
        await self._push.audit("directory.made", change.path)
        return True

    async def _directory_attributes(self) -> None:
        async with aclosing(self._push.side.changes(self._push.opened, "directories")) as found:
            async for change in found:
                if (
                    change.settled
                    and change.key == change.goal
                    and change.ino not in self._push.refused
                ):
                    await self._push.patient(change, lambda: self._set_directory(change))  # noqa: B023

    async def _set_directory(self, change: Change) -> None:
        now = await self._push.side.begin(change)
        if now is None or now.key is None or now.key != now.goal:
            return
        if now.empty and not self._push.can.mkdir:
            self._push.run.notice("the remote has no empty directories: they stay here only")
            return
        if self._push.options.modes and self._push.can.mode:
            with suppress(Unsupported):
                await self._push.remote.set_attributes(now.key, Attributes(mode=now.mode))
            self._push.report.metadata_set += 1
        await self._push.side.done(now, now.key, None)

    # --- renames ---------------------------------------------------------------------------------

    async def _moves(self) -> None:
        """Rename; what another one's place is in comes after that one, and circles are cut."""
        await self._push.find_moved()
        left = {change.ino: change for change in self._push.moved.values()}
        while left:
            free = [each for each in left.values() if not self._push.in_the_way(each)]
            if not free:
                # Who waits for whom goes round: the bytes of one of them come here first.
                waited = next(iter(left.values()))
                for key in self._push.in_the_way(waited):
                    if self._push.moved[key].ino in self._push.refused:
                        continue  # the remote may have renamed it: what it is based on tells
                    await self._push.patient(self._push.moved[key], lambda: self._push.own(key))  # noqa: B023
                if self._push.in_the_way(waited):
                    del left[waited.ino]
                continue

            async def each_of(some: list[Change] = free) -> AsyncGenerator[Change, None]:
                for each in some:
                    yield each

            await self._push.side_by_side(each_of(), self._one)
            for change in free:
                del left[change.ino]

    # --- files -----------------------------------------------------------------------------------

    async def _contents(self) -> None:
        meter = self._push.meter

        async def counted() -> AsyncGenerator[Change, None]:
            async with aclosing(self._push.side.changes(self._push.opened, "files")) as found:
                async for change in found:
                    if change.ino in self._push.refused:
                        continue
                    meter.files_total += 1
                    meter.bytes_total += change.size if change.written else 0
                    yield change

        await self._push.side_by_side(counted(), self._one)

    async def _one(self, seen: Change) -> None:
        for attempt in range(_TRIES):
            change = await self._push.side.begin(seen)
            if change is None:
                return
            try:
                if await self._as_it_is(change):
                    return
            except LocalChanged:
                if attempt == _TRIES - 1:
                    raise LocalChanged("it is being changed all the time: later") from None
            if self._push.options.closed_only:
                return  # it is noted, and comes again
            await trio.sleep(_AGAIN_S)

    async def _as_it_is(self, change: Change) -> bool:
        """Whether there is nothing left to do about it."""
        try:
            return await self._files.push(change)
        except (Changed, Exists):
            pass
        except BaseGone:
            if self._push.options.on_conflict not in {OnConflict.REFUSE, OnConflict.THEIRS}:
                raise
        assert change.goal is not None
        left = await self._conflicts.resolve(change, change.goal)
        if isinstance(left, bool):
            return left
        await self._one(left)
        return True
