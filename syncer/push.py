"""Push: what was changed here in a projection goes to its remote.

The changes are in the namespace and stay there until the remote has them: a push that ends
anywhere is run again. Directories first, then what was renamed (what one file is based on must not
be replaced by another), then content, then what was deleted, at last directories' attributes.

A file is pushed as one state of it: it is read under a token, which holds as long as nobody changes
it. Where the remote has something else than was seen here it is a conflict, unless it is what we
would write: then an earlier push was cut off before it could say so.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Final

import trio

from syncer.door import Door, DoorTree
from syncer.engine import Run
from syncer.events import Event, shown
from syncer.guidance import check, refuse_errors
from syncer.location import LocationKind, parse
from syncer.options import OnConflict
from syncer.push_changes import Change, Gone, LocalChanged, Opened, PushDoor, Side
from syncer.push_plan import (
    Act,
    attributes_of,
    conflict_name,
    decide,
    expected,
    is_as_seen,
    is_state,
    may_rename_whole,
)
from syncer.push_preview import Preview
from syncer.remote_tree import RemoteTree
from syncer.remotes.errors import (
    TRANSIENT,
    Changed,
    Exists,
    Missing,
    NotEmpty,
    RemoteError,
    Unsupported,
)
from syncer.remotes.remote import Attributes, Entry, Kind, Remote, Version
from syncer.tree import NodeKind

_PARALLEL: Final = 8  # files at a time
_TRIES: Final = 4  # for a file that is changed while it is pushed, here or there
_COMPARED: Final = 4 << 20  # bytes at a time
_PAUSE_S: Final = 0.5  # before the second try of a remote that is away; doubles
_PAUSE_MAX_S: Final = 15.0
_AGAIN_S: Final = 0.1  # a file that is being written gets a moment

Take = Callable[[int], Awaitable[None]]


class Conflict(RemoteError):
    """The remote has something else than was seen here."""


class BaseGone(Conflict):
    """What a local change is based on is not at the remote any more, and not all of it is here."""


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


class _Content:
    """The bytes of a change. See ByteSource."""

    def __init__(self, push: Push, change: Change) -> None:
        self._push = push
        self._change = change

    @property
    def size(self) -> int:
        return self._change.size

    async def read(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        return await self._push.read(self._change, offset, length)


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
        self._run = run
        self._side = side
        self._opened = opened
        self._remote = remote
        self._can = remote.capabilities
        self._options = run.options
        self._take = take
        self._now = now
        self._moved: dict[bytes, Change] = {}  # by the key that they are based on
        self._refused: set[int] = set()  # inodes that have failed
        self._answered_s = trio.current_time()  # when the remote last did something

    async def carry_out(self) -> None:
        """From the first directory to the last deletion. Raises RemoteError, OrbitError."""
        if not self._can.write:
            reason = self._can.write_reason or "it takes no changes"
            raise Unsupported(f"{self._opened.url} cannot be written: {reason}")
        meter = self._run.meter
        if self._run.dry_run:
            await Preview(self._run, self._side, self._opened, self._remote, self._tell).show()
            return
        try:
            meter.phase = "making directories"
            await self._directories()
            meter.phase = "renaming"
            await self._moves()
            meter.phase = "pushing"
            await self._files()
            meter.planned = True
            meter.phase = "deleting"
            await self._deletions(None)
            meter.phase = "finishing"
            await self._directory_attributes()
        except* TRANSIENT as away:
            self._failed(b"", away.exceptions[0])

    # --- telling ---------------------------------------------------------------------------------

    def _tell(self, event: str, path: str, message: str = "", *, count: int = 0) -> None:
        if event.startswith("would.") or self._run.tell.files or event == "file.failed":
            self._run.tell.event(
                Event(
                    event,
                    time.time_ns(),
                    source=path,
                    destination=path,
                    bytes=count,
                    message=message,
                )
            )

    def _failed(self, path: bytes, error: Exception | str, ino: int = 0) -> None:
        transient = isinstance(error, TRANSIENT)
        self._run.report.fail(shown(path), str(error), transient=transient)
        self._run.meter.files_failed += 1
        self._refused.add(ino)
        self._tell("file.failed", shown(path), str(error))

    async def _audit(self, event: str, path: bytes, count: int = 0) -> None:
        context = self._run.context
        if not context.audited:
            return
        from syncer.audit import AuditRecord

        record = AuditRecord(
            event, shown(path), f"{self._opened.url}/{shown(path)}", count, 0.0, "", "", "done"
        )
        audit = await trio.to_thread.run_sync(lambda: context.audit)
        if audit is not None:
            await trio.to_thread.run_sync(audit.append, self._run.job, (record,))

    # --- patience --------------------------------------------------------------------------------

    async def _patient(self, change: Change | Gone, act: Callable[[], Awaitable[None]]) -> None:
        """Act, again while the remote is away; what fails for good is counted, and fails alone."""
        pause_s = _PAUSE_S
        wait_s = 0.0 if self._options.closed_only else self._run.context.wait_s
        path = change.path or (change.key if isinstance(change, Gone) else b"") or b""
        ino = change.ino if isinstance(change, Change) else 0
        while True:
            try:
                await act()
            except TRANSIENT as error:
                if trio.current_time() - self._answered_s >= wait_s:
                    if self._options.closed_only:
                        raise  # the others would fail alike; the daemon tries again
                    self._failed(path, error, ino)
                    return
                self._run.report.retried += 1
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            except (RemoteError, LocalChanged) as error:
                self._failed(path, error, ino)
                return
            else:
                self._answered_s = trio.current_time()
                return

    async def _side_by_side(
        self, changes: AsyncGenerator[Change, None], act: Callable[[Change], Awaitable[None]]
    ) -> None:
        """Act on changes, several at a time."""
        workers = self._options.parallel or _PARALLEL
        send, receive = trio.open_memory_channel[Change](0)

        async def work(mine: trio.MemoryReceiveChannel[Change]) -> None:
            async with mine:
                async for change in mine:
                    path = shown(change.path)
                    self._run.meter.current[path] = None
                    try:
                        await self._patient(change, lambda: act(change))  # noqa: B023  awaited
                    finally:
                        self._run.meter.current.pop(path, None)

        async with trio.open_nursery() as nursery, send, receive:
            for _ in range(workers):
                nursery.start_soon(work, receive.clone())
            async with aclosing(changes):
                async for change in changes:
                    await send.send(change)
            await send.aclose()

    async def read(self, change: Change, offset: int, length: int) -> bytes:
        """Bytes of a change, as fast as is allowed. Raises LocalChanged, RemoteError."""
        if self._take is not None:
            await self._take(length)
        try:
            found = await self._side.read(change, offset, length)
        except Changed as error:
            raise BaseGone(str(error)) from None
        self._run.meter.bytes_done += length
        self._answered_s = trio.current_time()
        return found

    # --- directories -----------------------------------------------------------------------------

    async def _directories(self) -> None:
        """Make what is missing. What is in a moved one becomes changes of its own: look again."""
        seen: set[int] = set()
        again = True
        while again:
            again = False
            await self._find_moved()
            async with aclosing(self._side.changes(self._opened, "directories")) as found:
                async for change in found:
                    if change.ino in seen or not change.settled:
                        continue
                    act, reason = decide(change, self._can, self._options)
                    if act is Act.ATTRIBUTES:
                        continue
                    seen.add(change.ino)
                    if act is Act.REFUSE:
                        self._failed(change.path, reason, change.ino)
                        continue
                    again = True
                    await self._patient(change, lambda: self._make(change))  # noqa: B023  awaited
        async with aclosing(self._side.changes(self._opened, "directories")) as found:
            async for change in found:
                if not change.settled and change.ino not in seen:
                    self._failed(change.path, "the directory above could not be made", change.ino)

    async def _make(self, change: Change) -> None:
        goal = change.goal
        assert goal is not None
        if await self._rename_whole(change, goal):
            return
        if change.blocked:  # a file was there
            await self._clear(goal.removesuffix(b"/"))
        if change.replaces is not None:  # another directory was: what went with it goes now
            await self._deletions(goal, directories=False)
        new = True
        if self._can.mkdir:
            try:
                await self._remote.mkdir(goal)
                self._run.report.directories_made += 1
                self._tell("directory.made", shown(change.path))
                await self._audit("directory.made", change.path)
            except Exists:
                entry = await self._look(goal)
                if entry is None or entry.kind is not Kind.DIRECTORY:
                    await self._directory_conflict(change)
                    return
                new = False
        await self._side.made(change, new=new)

    async def _rename_whole(self, change: Change, goal: bytes) -> bool:
        """Rename a moved directory at the remote, all of it; False: its entries go one by one."""
        if not may_rename_whole(change, self._can):
            return False
        assert change.key is not None
        source = await self._look(change.key)
        if source is None or source.kind is not Kind.DIRECTORY or await self._look(goal):
            return False
        if not await self._side.renaming(self._opened, change):
            return False
        try:
            await self._remote.rename(change.key, goal, replace=False)
        except TRANSIENT:
            raise
        except RemoteError:
            return False  # what is in the way of it is told of the entries
        await self._side.renamed(change)
        self._run.report.directories_made += 1
        self._tell("directory.made", shown(change.path), "renamed")
        await self._audit("directory.made", change.path)
        return True

    async def _directory_conflict(self, change: Change) -> None:
        match self._options.on_conflict:
            case OnConflict.THEIRS:
                await self._side.theirs(self._opened, change.path, change.goal)
            case OnConflict.BOTH:
                await self._aside(change)
            case _:
                raise Conflict("the remote has a file of this name, which was not seen here")

    async def _directory_attributes(self) -> None:
        async with aclosing(self._side.changes(self._opened, "directories")) as found:
            async for change in found:
                if change.settled and change.key == change.goal and change.ino not in self._refused:
                    await self._patient(change, lambda: self._set_directory(change))  # noqa: B023

    async def _set_directory(self, change: Change) -> None:
        now = await self._side.begin(change)
        if now is None or now.key is None or now.key != now.goal:
            return
        if now.empty and not self._can.mkdir:
            self._run.notice("the remote has no empty directories: they stay here only")
            return
        if self._options.modes and self._can.mode:
            with suppress(Unsupported):
                await self._remote.set_attributes(now.key, Attributes(mode=now.mode))
            self._run.report.metadata_set += 1
        await self._side.done(now, now.key, None)

    # --- renames ---------------------------------------------------------------------------------

    async def _find_moved(self) -> None:
        self._moved.clear()
        async with aclosing(self._side.changes(self._opened, "moved")) as found:
            async for change in found:
                assert change.key is not None
                self._moved[change.key] = change

    async def _moves(self) -> None:
        """Rename; what another one's place is in comes after that one, and circles are cut."""
        await self._find_moved()
        left = {change.ino: change for change in self._moved.values()}
        while left:
            free = [each for each in left.values() if not self._in_the_way(each)]
            if not free:
                # Who waits for whom goes round: the bytes of one of them come here first.
                waited = next(iter(left.values()))
                for key in self._in_the_way(waited):
                    if self._moved[key].ino in self._refused:
                        continue  # the remote may have renamed it: what it is based on tells
                    await self._patient(self._moved[key], lambda: self._own(key))  # noqa: B023
                if self._in_the_way(waited):
                    del left[waited.ino]
                continue

            async def each_of(some: list[Change] = free) -> AsyncGenerator[Change, None]:
                for each in some:
                    yield each

            await self._side_by_side(each_of(), self._push)
            for change in free:
                del left[change.ino]

    def _in_the_way(self, change: Change) -> list[bytes]:
        """Keys at its goal that other changes are based on."""
        goal = change.goal
        if goal is None:
            return []
        found = [goal] if goal in self._moved and self._moved[goal].ino != change.ino else []
        if change.blocked:
            below = goal.removesuffix(b"/") + b"/"
            found += [key for key in self._moved if key.startswith(below)]
        return found

    async def _own(self, key: bytes) -> None:
        change = self._moved[key]
        await self._side.own(change)
        del self._moved[key]

    # --- files -----------------------------------------------------------------------------------

    async def _files(self) -> None:
        meter = self._run.meter

        async def counted() -> AsyncGenerator[Change, None]:
            async with aclosing(self._side.changes(self._opened, "files")) as found:
                async for change in found:
                    if change.ino in self._refused:
                        continue
                    meter.files_total += 1
                    meter.bytes_total += change.size if change.written else 0
                    yield change

        await self._side_by_side(counted(), self._push)

    async def _push(self, seen: Change) -> None:
        for attempt in range(_TRIES):
            change = await self._side.begin(seen)
            if change is None:
                return
            try:
                if await self._push_as_it_is(change):
                    return
            except LocalChanged:
                if attempt == _TRIES - 1:
                    raise LocalChanged("it is being changed all the time: later") from None
            if self._options.closed_only:
                return  # it is noted, and comes again
            await trio.sleep(_AGAIN_S)

    async def _push_as_it_is(self, change: Change) -> bool:
        """Whether there is nothing left to do about it."""
        act, reason = decide(change, self._can, self._options)
        if act is Act.LATER:
            return True
        if act is Act.REFUSE:
            raise Unsupported(reason)
        if not change.settled:
            raise Unsupported("its directory could not be made at the remote")
        if keys := self._in_the_way(change):
            other = shown(self._moved[keys[0]].path)
            raise Conflict(f"what the remote has here is still needed by {other}, which has failed")
        assert change.goal is not None
        self._run.report.files_seen += 1
        try:
            return await self._act(change, change.goal, act)
        except (Changed, Exists):
            return await self._resolve(change, change.goal)
        except BaseGone:
            if self._options.on_conflict in {OnConflict.REFUSE, OnConflict.THEIRS}:
                return await self._resolve(change, change.goal)
            raise

    async def _act(self, change: Change, goal: bytes, act: Act) -> bool:
        """Raises Changed, Exists: the remote has something else at the goal than was seen here."""
        if change.blocked:
            await self._deletions(goal + b"/")
            await self._delete(Gone(goal + b"/", None))
        if change.kind is NodeKind.FILE and change.replaces is not None:
            change = await self._without_link(change, change.replaces)
        match act:
            case Act.SYMLINK:
                return await self._link(change, goal)
            case Act.ATTRIBUTES:
                return await self._set_attributes(change, goal)
            case Act.RENAME:
                renamed = await self._rename(change, goal)
                if renamed is None:
                    return await self._write(change, goal, expected(change))
                if change.written:
                    return await self._write(change, goal, renamed.version)
                return await self._settle(change, goal, renamed, "renamed")
            case _:
                return await self._write(change, goal, expected(change))

    async def _without_link(self, change: Change, replaces: Gone) -> Change:
        """A symlink that was seen where a file is to be goes first."""
        if replaces.target is None:
            return change
        now = await self._look(replaces.key)
        if now is not None:
            if not is_as_seen(replaces, now):
                raise Changed("the remote has something else here")
            await self._remote.delete(now.key)
        return change._replace(replaces=None)

    async def _look(self, key: bytes) -> Entry | None:
        try:
            return await self._remote.stat(key)
        except Missing:
            return None

    async def _settle(self, change: Change, goal: bytes, entry: Entry, how: str) -> bool:
        """The remote has it."""
        clean = await self._side.done(change, goal, entry)
        if change.moved:
            assert change.key is not None
            self._moved.pop(change.key, None)
        report = self._run.report
        report.files_copied += 1
        report.how[how] = report.how.get(how, 0) + 1
        self._run.meter.files_done += 1
        moved = change.size if how == "written" else 0
        report.bytes_moved += moved
        self._tell("file.copied", shown(change.path), how, count=moved)
        await self._audit("file.copied", change.path, moved)
        return clean

    async def _write(self, change: Change, goal: bytes, version: Version | None) -> bool:
        """Raises Changed, Exists: the remote has something else than `version`."""
        attributes = attributes_of(change, self._can, self._options)
        if version is None and change.replaces is not None:
            raise Changed("it is not known what the remote had here")
        entry = await self._remote.write(
            goal,
            _Content(self, change),
            attributes,
            if_version=version,
            replace=version is not None,
        )
        return await self._settle(change, goal, entry, "written")

    async def _rename(self, change: Change, goal: bytes) -> Entry | None:
        """Rename at the remote; None: what it is based on is not there any more as it was seen.

        Raises Changed, Exists, as for the goal.
        """
        assert change.key is not None
        source, target = await self._look(change.key), await self._look(goal)
        if source is None and target is not None and is_state(target, change.version):
            await self._side.forget(self._opened, change.key)
            return target  # by a push that was cut off
        if target is not None and change.replaces is None:
            raise Exists("the remote has a file of this name, which was not seen here")
        if target is not None and not is_as_seen(change.replaces or Gone(goal, None), target):
            raise Changed("the remote has changed what is to be replaced")
        if source is None or not is_state(source, change.version):
            if self._options.on_conflict is OnConflict.REFUSE and source is not None:
                raise Conflict("the remote has changed the file that was renamed here")
            return None
        try:
            await self._remote.rename(change.key, goal, replace=target is not None)
        except Missing:
            return None
        entry = await self._remote.stat(goal)
        await self._side.forget(self._opened, change.key)
        return entry

    async def _set_attributes(self, change: Change, goal: bytes) -> bool:
        attributes = attributes_of(change, self._can, self._options)
        entry = await self._remote.stat(goal) if await self._look(goal) is not None else None
        if entry is None or entry.kind is not Kind.FILE or entry.version != change.version:
            raise Changed("the remote has another version")
        if attributes != Attributes():
            await self._remote.set_attributes(goal, attributes)
            entry = await self._remote.stat(goal)
            if entry.size != change.size:
                raise Changed("the remote has another version")
        else:
            self._run.notice("the remote keeps neither modes nor times: they stay here only")
        clean = await self._side.done(change, goal, entry)
        self._run.report.metadata_set += 1
        self._tell("metadata.set", shown(change.path))
        await self._audit("metadata.set", change.path)
        return clean

    async def _link(self, change: Change, goal: bytes) -> bool:
        assert change.target is not None
        now = await self._look(goal)
        if now is not None and not (now.kind is Kind.SYMLINK and now.target == change.target):
            if change.replaces is None or not is_as_seen(change.replaces, now):
                raise Changed("the remote has something else here")
            await self._remote.delete(now.key)
            now = None
        if now is None:
            await self._remote.symlink(goal, change.target)
        return await self._settle(change, goal, await self._remote.stat(goal), "linked")

    # --- conflicts -------------------------------------------------------------------------------

    async def _resolve(self, change: Change, goal: bytes) -> bool:
        """The remote has something else at the goal than was seen here."""
        now = await self._look(goal)
        if change.kind is NodeKind.FILE and now is not None and await self._same(change, now):
            if change.moved and change.key is not None:
                await self._side.forget(self._opened, change.key)
            return await self._settle(change, goal, now, "found there")
        if change.kind is NodeKind.SYMLINK and now is not None and now.target == change.target:
            return await self._settle(change, goal, now, "found there")
        match self._options.on_conflict:
            case OnConflict.REFUSE:
                what = "has deleted it" if now is None else "has changed it"
                raise Conflict(
                    f"the remote {what} meanwhile: push with --on-conflict ours, theirs or both"
                )
            case OnConflict.THEIRS:
                await self._side.theirs(self._opened, change.path, change.key)
                self._run.notice("where the remote had changed, the local change was dropped")
                return True
            case OnConflict.BOTH if now is not None:
                await self._aside(change)
                return True
        return await self._replace(change, goal, now)

    async def _replace(self, change: Change, goal: bytes, now: Entry | None) -> bool:
        """Ours counts."""
        if now is not None and now.kind is Kind.DIRECTORY:
            raise Conflict("the remote has a directory of this name: delete or rename it there")
        if change.kind is NodeKind.SYMLINK:
            if now is not None:
                await self._remote.delete(now.key)
            return await self._link(change, goal)
        if now is not None and now.kind is not Kind.FILE:
            await self._remote.delete(now.key)
            now = None
        free = change._replace(replaces=None)
        try:
            return await self._write(free, goal, None if now is None else now.version)
        except (Changed, Exists):
            raise Conflict("the remote changes it all the time: later") from None

    async def _same(self, change: Change, now: Entry) -> bool:
        """Whether the remote has what we would write."""
        if now.kind is not Kind.FILE or now.size != change.size:
            return False
        for offset in range(0, change.size, _COMPARED):
            length = min(_COMPARED, change.size - offset)
            theirs = await self._remote.read(now.key, now.version, offset, length)
            try:
                ours = await self._side.read(change, offset, length)
            except Changed:
                return False
            if theirs != ours:
                return False
        return True

    async def _aside(self, change: Change) -> None:
        """Theirs keeps the name; ours is pushed beside it, by the next look at the changes."""
        name = conflict_name(change.name, socket.gethostname(), self._now())
        await self._side.aside(change, name)
        beside = change._replace(name=name)
        now = await self._side.begin(beside)
        self._run.notice("where the remote had changed, ours was pushed beside it (*.conflict-*)")
        if now is None:
            return
        if now.kind is NodeKind.DIRECTORY:
            await self._make(now)
        else:
            await self._push(now)

    # --- deletions -------------------------------------------------------------------------------

    async def _deletions(self, prefix: bytes | None, *, directories: bool = True) -> None:
        """What was taken away here goes over there, if it is what was seen.

        `prefix`: below it only. `directories` false: those may get something in them yet.
        """
        async with aclosing(self._side.gone(self._opened, prefix)) as found:
            async for gone in found:
                # What is needed goes when what shows it has been pushed.
                if gone.key == prefix or gone.needed:
                    continue
                if gone.key.endswith(b"/") and not directories:
                    continue
                await self._patient(gone, lambda: self._delete(gone))  # noqa: B023  awaited

    async def _clear(self, key: bytes) -> None:
        """Something else is to be where a file was."""
        await self._find_moved()
        if key in self._moved:
            await self._own(key)
        async with aclosing(self._side.gone(self._opened, key)) as found:
            async for gone in found:
                if gone.key == key:
                    if gone.needed:
                        raise Conflict("what the remote has here is still needed")
                    await self._delete(gone)
                    return
        now = await self._look(key)
        if now is not None and now.kind is not Kind.DIRECTORY:
            raise Conflict("the remote has a file of this name")

    async def _delete(self, gone: Gone) -> None:
        path = gone.key if gone.path is None else gone.path
        now = await self._look(gone.key)
        if now is not None and not is_as_seen(gone, now):
            if self._options.on_conflict in {OnConflict.THEIRS, OnConflict.BOTH}:
                await self._keep(gone)
                return
            if self._options.on_conflict is OnConflict.REFUSE or now.kind is Kind.DIRECTORY:
                raise Conflict("deleted here, but the remote has changed it since it was seen")
        if now is not None:
            try:
                await self._remote.delete(now.key)
            except Missing:
                pass
            except NotEmpty:
                if self._options.on_conflict in {OnConflict.THEIRS, OnConflict.BOTH}:
                    await self._keep(gone)
                    return
                raise Conflict(
                    "deleted here, but the remote has something in it that was not seen"
                ) from None
            else:
                self._run.report.deleted += 1
                self._tell("name.deleted", shown(path))
                await self._audit("name.deleted", path)
        await self._side.forget(self._opened, gone.key)

    async def _keep(self, gone: Gone) -> None:
        if gone.path is None:
            await self._side.forget(self._opened, gone.key)
        else:
            await self._side.theirs(self._opened, gone.path, gone.key)
        self._run.notice("what the remote had changed is not deleted, and shown again")
