"""What the parts of a push share: both sides, what is told, and patience."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

import trio

from syncer.engine import Run
from syncer.events import Event, shown
from syncer.push_changes import Change, Gone, LocalChanged, Opened, Side
from syncer.remotes.errors import TRANSIENT, Changed, Missing, RemoteError
from syncer.remotes.remote import Entry, Remote

_PARALLEL: Final = 8  # files at a time
_PAUSE_S: Final = 0.5  # before the second try of a remote that is away; doubles
_PAUSE_MAX_S: Final = 15.0

Take = Callable[[int], Awaitable[None]]


class Conflict(RemoteError):
    """The remote has something else than was seen here."""


class BaseGone(Conflict):
    """What a local change is based on is not at the remote any more, and not all of it is here."""


class PushRun:
    """One push."""

    def __init__(
        self, run: Run, side: Side, opened: Opened, remote: Remote, *, take: Take | None = None
    ) -> None:
        """`take` waits until so many bytes may be moved."""
        self.run = run
        self.side = side
        self.opened = opened
        self.remote = remote
        self.can = remote.capabilities
        self.options = run.options
        self.report = run.report
        self.meter = run.meter
        self.moved: dict[bytes, Change] = {}  # by the key that they are based on
        self.refused: set[int] = set()  # inodes that have failed
        self._take = take
        self._answered_s = trio.current_time()  # when the remote last did something

    # --- telling ---------------------------------------------------------------------------------

    def tell(self, event: str, path: str, message: str = "", *, count: int = 0) -> None:
        """Of one name; `count` bytes were moved."""
        if event.startswith("would.") or self.run.tell.files or event == "file.failed":
            self.run.tell.event(
                Event(
                    event,
                    time.time_ns(),
                    source=path,
                    destination=path,
                    bytes=count,
                    message=message,
                )
            )

    def failed(self, path: bytes, error: Exception | str, ino: int = 0) -> None:
        """It is reported; nothing more is done about this inode."""
        transient = isinstance(error, TRANSIENT)
        self.report.fail(shown(path), str(error), transient=transient)
        self.meter.files_failed += 1
        self.refused.add(ino)
        self.tell("file.failed", shown(path), str(error))

    async def audit(self, event: str, path: bytes, count: int = 0) -> None:
        """Put what was done into the audit trail."""
        context = self.run.context
        if not context.audited:
            return
        from syncer.audit import AuditRecord

        record = AuditRecord(
            event, shown(path), f"{self.opened.url}/{shown(path)}", count, 0.0, "", "", "done"
        )
        audit = await trio.to_thread.run_sync(lambda: context.audit)
        if audit is not None:
            await trio.to_thread.run_sync(audit.append, self.run.job, (record,))

    # --- patience --------------------------------------------------------------------------------

    async def patient(self, change: Change | Gone, act: Callable[[], Awaitable[None]]) -> None:
        """Act, again while the remote is away; what fails for good is counted, and fails alone."""
        pause_s = _PAUSE_S
        wait_s = 0.0 if self.options.closed_only else self.run.context.wait_s
        path = change.path or (change.key if isinstance(change, Gone) else b"") or b""
        ino = change.ino if isinstance(change, Change) else 0
        while True:
            try:
                await act()
            except TRANSIENT as error:
                if trio.current_time() - self._answered_s >= wait_s:
                    if self.options.closed_only:
                        raise  # the others would fail alike; the daemon tries again
                    self.failed(path, error, ino)
                    return
                self.report.retried += 1
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            except (RemoteError, LocalChanged) as error:
                self.failed(path, error, ino)
                return
            else:
                self._answered_s = trio.current_time()
                return

    async def side_by_side(
        self, changes: AsyncGenerator[Change, None], act: Callable[[Change], Awaitable[None]]
    ) -> None:
        """Act on changes, several at a time."""
        workers = self.options.parallel or _PARALLEL
        send, receive = trio.open_memory_channel[Change](0)

        async def work(mine: trio.MemoryReceiveChannel[Change]) -> None:
            async with mine:
                async for change in mine:
                    path = shown(change.path)
                    self.meter.current[path] = None
                    try:
                        await self.patient(change, lambda: act(change))  # noqa: B023  awaited
                    finally:
                        self.meter.current.pop(path, None)

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
            found = await self.side.read(change, offset, length)
        except Changed as error:
            raise BaseGone(str(error)) from None
        self.meter.bytes_done += length
        self._answered_s = trio.current_time()
        return found

    async def look(self, key: bytes) -> Entry | None:
        """What the remote has under a key."""
        try:
            return await self.remote.stat(key)
        except Missing:
            return None

    # --- what was moved ------------------------------------------------------------------------

    async def find_moved(self) -> None:
        """Look again at what the remote has under another key."""
        self.moved.clear()
        async with aclosing(self.side.changes(self.opened, "moved")) as found:
            async for change in found:
                assert change.key is not None
                self.moved[change.key] = change

    def in_the_way(self, change: Change) -> list[bytes]:
        """Keys at its goal that other changes are based on."""
        goal = change.goal
        if goal is None:
            return []
        found = [goal] if goal in self.moved and self.moved[goal].ino != change.ino else []
        if change.blocked:
            below = goal.removesuffix(b"/") + b"/"
            found += [key for key in self.moved if key.startswith(below)]
        return found

    async def own(self, key: bytes) -> None:
        """Have the bytes here of what is based on a key."""
        change = self.moved[key]
        await self.side.own(change)
        del self.moved[key]
