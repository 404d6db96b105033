"""Conflicts of a push: the remote has something else than was seen here.

It is none where the remote has what we would write: then an earlier push was cut off before it
could say so.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import datetime
from typing import Final

from syncer.options import OnConflict
from syncer.push_changes import Change
from syncer.push_files import Files
from syncer.push_plan import conflict_name
from syncer.push_run import Conflict, PushRun
from syncer.remotes.errors import Changed, Exists
from syncer.remotes.remote import Entry, Kind
from syncer.tree import NodeKind

_COMPARED: Final = 4 << 20  # bytes at a time


class Conflicts:
    """Resolves them as the user has said."""

    def __init__(self, push: PushRun, files: Files, now: Callable[[], datetime]) -> None:
        self._push = push
        self._files = files
        self._now = now

    async def resolve(self, change: Change, goal: bytes) -> bool | Change:
        """The remote has something else at the goal than was seen here.

        Whether there is nothing left to do, or what is to be pushed beside it. Raises Conflict.
        """
        now = await self._push.look(goal)
        if change.kind is NodeKind.FILE and now is not None and await self._same(change, now):
            if change.moved and change.key is not None and not await self._push.look(change.key):
                await self._push.side.forget(self._push.opened, change.key)
            return await self._files.settle(change, goal, now, "found there")
        if change.kind is NodeKind.SYMLINK and now is not None and now.target == change.target:
            return await self._files.settle(change, goal, now, "found there")
        match self._push.options.on_conflict:
            case OnConflict.REFUSE:
                what = "has deleted it" if now is None else "has changed it"
                raise Conflict(
                    f"the remote {what} meanwhile: push with --on-conflict ours, theirs or both"
                )
            case OnConflict.THEIRS:
                await self._push.side.theirs(self._push.opened, change.path, change.key)
                self._push.run.notice("where the remote had changed, the local change was dropped")
                return True
            case OnConflict.BOTH if now is not None:
                return await self._aside(change) or True
        return await self._replace(change, goal, now)

    async def _replace(self, change: Change, goal: bytes, now: Entry | None) -> bool:
        """Ours counts."""
        if now is not None and now.kind is Kind.DIRECTORY:
            raise Conflict("the remote has a directory of this name: delete or rename it there")
        if change.kind is NodeKind.SYMLINK:
            if now is not None:
                await self._push.remote.delete(now.key)
            return await self._files.link(change, goal)
        if now is not None and now.kind is not Kind.FILE:
            await self._push.remote.delete(now.key)
            now = None
        free = change._replace(replaces=None)
        try:
            return await self._files.write(free, goal, None if now is None else now.version)
        except (Changed, Exists):
            raise Conflict("the remote changes it all the time: later") from None

    async def _same(self, change: Change, now: Entry) -> bool:
        """Whether the remote has what we would write."""
        if now.kind is not Kind.FILE or now.size != change.size:
            return False
        for offset in range(0, change.size, _COMPARED):
            length = min(_COMPARED, change.size - offset)
            theirs = await self._push.remote.read(now.key, now.version, offset, length)
            try:
                ours = await self._push.side.read(change, offset, length)
            except Changed:
                return False
            if theirs != ours:
                return False
        return True

    async def directory(self, change: Change) -> Change | None:
        """The remote has a file where a directory is to be; what is to be made beside it."""
        match self._push.options.on_conflict:
            case OnConflict.THEIRS:
                await self._push.side.theirs(self._push.opened, change.path, change.goal)
                return None
            case OnConflict.BOTH:
                return await self._aside(change)
            case _:
                raise Conflict("the remote has a file of this name, which was not seen here")

    async def _aside(self, change: Change) -> Change | None:
        """Theirs keeps the name; ours has another one, under which it is to be pushed."""
        name = conflict_name(change.name, socket.gethostname(), self._now())
        await self._push.side.aside(change, name)
        self._push.run.notice(
            "where the remote had changed, ours was pushed beside it (*.conflict-*)"
        )
        return await self._push.side.begin(change._replace(name=name))
