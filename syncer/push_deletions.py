"""Deletions of a push: what was taken away here goes at the remote, if it is what was seen."""

from __future__ import annotations

from contextlib import aclosing

from syncer.events import shown
from syncer.options import OnConflict
from syncer.push_changes import Gone
from syncer.push_plan import is_as_seen
from syncer.push_run import Conflict, PushRun
from syncer.remotes.errors import Missing, NotEmpty
from syncer.remotes.remote import Kind


class Deletions:
    """Deletes, and lets go of what is noted."""

    def __init__(self, push: PushRun) -> None:
        self._push = push

    async def below(self, prefix: bytes | None, *, directories: bool = True) -> None:
        """What was taken away here goes over there, if it is what was seen.

        `prefix`: below it only. `directories` false: those may get something in them yet.
        """
        async with aclosing(self._push.side.gone(self._push.opened, prefix)) as found:
            async for gone in found:
                # What is needed goes when what shows it has been pushed.
                if gone.key == prefix or gone.needed:
                    continue
                if gone.key.endswith(b"/") and not directories:
                    continue
                await self._push.patient(gone, lambda: self.delete(gone))  # noqa: B023  awaited

    async def clear(self, key: bytes) -> None:
        """Something else is to be where a file was."""
        await self._push.find_moved()
        if key in self._push.moved:
            await self._push.own(key)
        async with aclosing(self._push.side.gone(self._push.opened, key)) as found:
            async for gone in found:
                if gone.key == key:
                    if gone.needed:
                        raise Conflict("what the remote has here is still needed")
                    await self.delete(gone)
                    return
        now = await self._push.look(key)
        if now is not None and now.kind is not Kind.DIRECTORY:
            raise Conflict("the remote has a file of this name")

    async def delete(self, gone: Gone) -> None:
        """One entry, if it is what was seen. Raises Conflict."""
        path = gone.key if gone.path is None else gone.path
        now = await self._push.look(gone.key)
        if now is not None and not is_as_seen(gone, now):
            if self._push.options.on_conflict in {OnConflict.THEIRS, OnConflict.BOTH}:
                await self._keep(gone)
                return
            if self._push.options.on_conflict is OnConflict.REFUSE or now.kind is Kind.DIRECTORY:
                raise Conflict("deleted here, but the remote has changed it since it was seen")
        if now is not None:
            try:
                await self._push.remote.delete(now.key)
            except Missing:
                pass
            except NotEmpty:
                if self._push.options.on_conflict in {OnConflict.THEIRS, OnConflict.BOTH}:
                    await self._keep(gone)
                    return
                raise Conflict(
                    "deleted here, but the remote has something in it that was not seen"
                ) from None
            else:
                self._push.report.deleted += 1
                self._push.tell("name.deleted", shown(path))
                await self._push.audit("name.deleted", path)
        await self._push.side.forget(self._push.opened, gone.key)

    async def _keep(self, gone: Gone) -> None:
        if gone.path is None:
            await self._push.side.forget(self._push.opened, gone.key)
        else:
            await self._push.side.theirs(self._push.opened, gone.path, gone.key)
        self._push.run.notice("what the remote had changed is not deleted, and shown again")
