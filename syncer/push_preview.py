"""What a push would do: by the decisions of the run, with a look at the remote for each change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from syncer.engine import Run
from syncer.events import shown
from syncer.options import OnConflict
from syncer.push_changes import Change, Gone, Opened, Side
from syncer.push_plan import Act, decide, in_conflict, is_as_seen, may_rename_whole
from syncer.remotes.errors import Missing, RemoteError
from syncer.remotes.remote import Entry, Kind, Remote
from syncer.tree import NodeKind

REFUSED: Final = "meanwhile: push with --on-conflict ours, theirs or both"

Tell = Callable[..., None]  # event, path, message, count=bytes


class Preview:
    """Tells, and counts; nothing is written, here or there."""

    def __init__(self, run: Run, side: Side, opened: Opened, remote: Remote, tell: Tell) -> None:
        self._run = run
        self._side = side
        self._opened = opened
        self._remote = remote
        self._tell = tell
        self._goes_on = run.options.on_conflict
        self._renamed: set[bytes] = set()  # keys of directories that are renamed whole

    async def show(self) -> None:
        """All of it. Raises RemoteError where the remote does not answer."""
        for what in ("directories", "files"):
            async with aclosing(self._side.changes(self._opened, what)) as found:
                async for change in found:
                    await self._show(change)
        async with aclosing(self._side.gone(self._opened)) as found_gone:
            async for gone in found_gone:
                # A directory that is made anew: its old place goes when it is empty.
                made_anew = gone.key.endswith(b"/") and gone.key not in self._renamed
                if not gone.needed or made_anew:
                    await self._show_gone(gone)

    async def _look(self, key: bytes) -> Entry | None:
        try:
            return await self._remote.stat(key)
        except Missing:
            return None

    async def _show(self, change: Change) -> None:
        report = self._run.report
        act, reason = decide(change, self._remote.capabilities, self._run.options)
        path = shown(change.path)
        report.files_seen += change.kind is NodeKind.FILE
        match act:
            case Act.REFUSE:
                report.fail(path, reason)
                return
            case Act.LATER:
                return
            case Act.MKDIR:
                report.directories_made += 1
                if await self._renames_whole(change):
                    reason = "renamed"
                self._tell("would.directory.made", path, reason)
                return
        if change.kind is not NodeKind.DIRECTORY and change.goal is not None:
            now = await self._look(change.goal)
            if in_conflict(change, now):
                if self._goes_on is OnConflict.REFUSE:
                    what = "has deleted it" if now is None else "has changed it"
                    report.fail(path, f"the remote {what} {REFUSED}")
                    return
                if self._goes_on is OnConflict.THEIRS:
                    self._tell("would.note", path, "the remote has changed it: ours is dropped")
                    return
                beside = self._goes_on is OnConflict.BOTH and now is not None
                reason = f"{reason}, {'beside' if beside else 'over'} what the remote has changed"
        if act is Act.ATTRIBUTES:
            report.metadata_set += 1
            self._tell("would.metadata.set", path, reason)
            return
        report.files_copied += 1
        self._tell("would.file.copied", path, reason, count=change.size if change.written else 0)

    async def _renames_whole(self, change: Change) -> bool:
        if not may_rename_whole(change, self._remote.capabilities):
            return False
        assert change.key is not None
        assert change.goal is not None
        source = await self._look(change.key)
        if source is None or source.kind is not Kind.DIRECTORY or await self._look(change.goal):
            return False
        self._renamed.add(change.key)
        return True

    async def _show_gone(self, gone: Gone) -> None:
        report = self._run.report
        path = shown(gone.path or gone.key)
        now = await self._look(gone.key)
        if now is not None and not is_as_seen(gone, now) and self._goes_on is not OnConflict.OURS:
            error = RemoteError("deleted here, but the remote has changed it since it was seen")
            if self._goes_on is OnConflict.REFUSE:
                report.fail(path, str(error))
            else:
                self._tell("would.note", path, "the remote has changed it: it is kept")
            return
        report.deleted += 1
        self._tell("would.name.deleted", path, "deleted here")
