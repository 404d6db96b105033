"""Files of a push: one state of a file, a symlink or attributes go to the remote."""

from __future__ import annotations

from syncer.events import shown
from syncer.options import OnConflict
from syncer.push_changes import Change, Gone
from syncer.push_deletions import Deletions
from syncer.push_plan import Act, attributes_of, decide, expected, is_as_seen, is_state, was_renamed
from syncer.push_run import Conflict, PushRun
from syncer.remotes.errors import Changed, Exists, Missing, Unsupported
from syncer.remotes.remote import Attributes, Entry, Kind, Version
from syncer.tree import NodeKind


class _Content:
    """The bytes of a change. See ByteSource."""

    def __init__(self, push: PushRun, change: Change) -> None:
        self._push = push
        self._change = change

    @property
    def size(self) -> int:
        return self._change.size

    async def read(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        return await self._push.read(self._change, offset, length)


class Files:
    """Writes, renames, links."""

    def __init__(self, push: PushRun, deletions: Deletions) -> None:
        self._push = push
        self._deletions = deletions

    async def push(self, change: Change) -> bool:
        """Bring a change to the remote; whether there is nothing left to do about it.

        Raises Changed, Exists, BaseGone: the remote has something else than was seen here.
        """
        act, reason = decide(change, self._push.can, self._push.options)
        if act is Act.LATER:
            return True
        if act is Act.REFUSE:
            raise Unsupported(reason)
        if not change.settled:
            raise Unsupported("its directory could not be made at the remote")
        if keys := self._push.in_the_way(change):
            other = shown(self._push.moved[keys[0]].path)
            raise Conflict(f"what the remote has here is still needed by {other}, which has failed")
        assert change.goal is not None
        self._push.report.files_seen += 1
        return await self._act(change, change.goal, act)

    async def _act(self, change: Change, goal: bytes, act: Act) -> bool:
        """Raises Changed, Exists: the remote has something else at the goal than was seen here."""
        if change.blocked:
            await self._deletions.below(goal + b"/")
            await self._deletions.delete(Gone(goal + b"/", None))
        if change.kind is NodeKind.FILE and change.replaces is not None:
            change = await self._without_link(change, change.replaces)
        match act:
            case Act.SYMLINK:
                return await self.link(change, goal)
            case Act.ATTRIBUTES:
                return await self._set_attributes(change, goal)
            case Act.RENAME:
                renamed = await self._rename(change, goal)
                if renamed is None:
                    return await self.write(change, goal, expected(change))
                return await self.settle(change, goal, renamed, "renamed")
            case _:
                return await self.write(change, goal, await self._written_over(change, goal))

    async def _without_link(self, change: Change, replaces: Gone) -> Change:
        """A symlink that was seen where a file is to be goes first."""
        if replaces.target is None:
            return change
        now = await self._push.look(replaces.key)
        if now is not None:
            if not is_as_seen(replaces, now):
                raise Changed("the remote has something else here")
            await self._push.remote.delete(now.key)
        return change._replace(replaces=None)

    async def settle(self, change: Change, goal: bytes, entry: Entry, how: str) -> bool:
        """The remote has it."""
        clean = await self._push.side.done(change, goal, entry)
        if change.moved:
            assert change.key is not None
            self._push.moved.pop(change.key, None)
        report = self._push.report
        report.files_copied += 1
        report.how[how] = report.how.get(how, 0) + 1
        self._push.meter.files_done += 1
        moved = change.size if how == "written" else 0
        report.bytes_moved += moved
        self._push.tell("file.copied", shown(change.path), how, count=moved)
        await self._push.audit("file.copied", change.path, moved)
        return clean

    async def write(self, change: Change, goal: bytes, version: Version | None) -> bool:
        """Raises Changed, Exists: the remote has something else than `version`."""
        attributes = attributes_of(change, self._push.can, self._push.options)
        if version is None and change.replaces is not None:
            raise Changed("it is not known what the remote had here")
        entry = await self._push.remote.write(
            goal,
            _Content(self._push, change),
            attributes,
            if_version=version,
            replace=version is not None,
        )
        return await self.settle(change, goal, entry, "written")

    async def _written_over(self, change: Change, goal: bytes) -> Version | None:
        """The version that is to be at the goal; None: nothing."""
        if change.moved and self._push.can.rename:
            assert change.key is not None
            source, target = await self._push.look(change.key), await self._push.look(goal)
            if target is not None and was_renamed(change, source, target):
                await self._push.side.forget(self._push.opened, change.key)
                return target.version
        return expected(change)

    async def _rename(self, change: Change, goal: bytes) -> Entry | None:
        """Rename at the remote; None: what it is based on is not there any more as it was seen.

        Raises Changed, Exists, as for the goal.
        """
        assert change.key is not None
        source, target = await self._push.look(change.key), await self._push.look(goal)
        if was_renamed(change, source, target):
            await self._push.side.forget(self._push.opened, change.key)
            return target
        if target is not None and change.replaces is None:
            raise Exists("the remote has a file of this name, which was not seen here")
        if target is not None and not is_as_seen(change.replaces or Gone(goal, None), target):
            raise Changed("the remote has changed what is to be replaced")
        if source is None or not is_state(source, change.version):
            if self._push.options.on_conflict is OnConflict.REFUSE and source is not None:
                raise Conflict("the remote has changed the file that was renamed here")
            return None
        try:
            await self._push.remote.rename(change.key, goal, replace=target is not None)
        except Missing:
            return None
        entry = await self._push.remote.stat(goal)
        await self._push.side.forget(self._push.opened, change.key)
        return entry

    async def _set_attributes(self, change: Change, goal: bytes) -> bool:
        attributes = attributes_of(change, self._push.can, self._push.options)
        entry = (
            await self._push.remote.stat(goal) if await self._push.look(goal) is not None else None
        )
        if entry is None or entry.kind is not Kind.FILE or entry.version != change.version:
            raise Changed("the remote has another version")
        if attributes != Attributes():
            await self._push.remote.set_attributes(goal, attributes)
            entry = await self._push.remote.stat(goal)
            if entry.size != change.size:
                raise Changed("the remote has another version")
        else:
            self._push.run.notice("the remote keeps neither modes nor times: they stay here only")
        clean = await self._push.side.done(change, goal, entry)
        self._push.report.metadata_set += 1
        self._push.tell("metadata.set", shown(change.path))
        await self._push.audit("metadata.set", change.path)
        return clean

    async def link(self, change: Change, goal: bytes) -> bool:
        """Make a symlink. Raises Changed."""
        assert change.target is not None
        now = await self._push.look(goal)
        if now is not None and not (now.kind is Kind.SYMLINK and now.target == change.target):
            if change.replaces is None or not is_as_seen(change.replaces, now):
                raise Changed("the remote has something else here")
            await self._push.remote.delete(now.key)
            now = None
        if now is None:
            await self._push.remote.symlink(goal, change.target)
        return await self.settle(change, goal, await self._push.remote.stat(goal), "linked")
