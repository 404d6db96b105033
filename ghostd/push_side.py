"""The namespace as a push sees it, through the door: what was changed here, and settling it.

What is listed is as of the last commit, and looked at again in the live tree; what is settled is
compared first. From comparing to changing nothing awaits. Owned by the filesystem's loop.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from ghostd import errors as fs_errors
from ghostd.attached_paths import AttachedPaths
from ghostd.cow_changes import in_place
from ghostd.cow_revert import Reverter
from ghostd.filesystem import Filesystem
from ghostd.invalidator import Invalidator
from ghostd.listings import Listings
from ghostd.projection import OWN_OPTIONS, Projection
from ghostd.projections import Projections
from ghostd.push_conflicts import PushConflicts
from ghostd.push_directories import PushDirectories
from ghostd.push_found import LocalChanges
from ghostd.push_gone import (
    adopt_hidden,
    key_of,
)
from ghostd.push_settled import Settling
from ghostd.push_watch import PushWatch
from ghostd.tree_walk import find_path
from syncer.door_protocol import Head, data, text
from syncer.push_changes import change_to_wire
from syncer.remotes import errors


class PushSide:
    """Answers the requests whose names begin with `push_`."""

    def __init__(
        self,
        filesystem: Filesystem,
        projections: Projections,
        listings: Listings,
        reverter: Reverter,
        watch: PushWatch,
        paths: AttachedPaths,
        invalidator: Invalidator,
        *,
        pushed: Callable[[int], None] = lambda _: None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`pushed` is told of a projection with a file that its remote has as it is here."""
        self._fs = filesystem
        self._tree = filesystem.tree
        self._writeback = filesystem.writeback
        self._projections = projections
        self._watch = watch
        self._invalidator = invalidator
        tree, writeback = self._tree, self._writeback
        self._found = LocalChanges(tree, writeback)
        self._directories = PushDirectories(tree, writeback, listings, watch, now_ns=now_ns)
        self._settling = Settling(
            tree, writeback, self._directories, watch, invalidator, self._projection, pushed
        )
        self._conflicts = PushConflicts(filesystem, listings, reverter, watch, paths, invalidator)

    async def answer(self, head: Mapping[str, Any]) -> tuple[Head, bytes]:
        """Do what a request asks for. Raises OrbitError."""
        match head["op"]:
            case "push_open":
                return await self._open(data(head["path"])), b""
            case "push_changes":
                self._projection(head["projection"])
                return await self._found.changes(head), b""
            case "push_gone":
                self._projection(head["projection"])
                return await self._found.gone(head), b""
            case "push_begin":
                return await self._begin(head), b""
            case "push_read":
                return await self._read(head)
            case "push_done":
                return {"clean": await self._settling.done(head)}, b""
            case "push_made" | "push_renaming" | "push_renamed":
                return await self._answer_directory(head), b""
            case "push_forget":
                await self._forget(head["projection"], data(head["key"]))
            case "push_own":
                await self._conflicts.own(head["ino"])
            case "push_aside":
                await self._conflicts.aside(head)
                await self._invalidator.told()
            case "push_theirs":
                self._projection(head["projection"])
                await self._conflicts.theirs(head)
                await self._invalidator.told()
            case op:
                raise errors.Unsupported(f"the door knows no {op!r}")
        return {}, b""

    async def _answer_directory(self, head: Mapping[str, Any]) -> Head:
        where = head["ino"], head["parent"], data(head["name"])
        match head["op"]:
            case "push_made":
                await self._directories.made(*where, data(head["key"]), new=head["new"])
            case "push_renaming":
                return {"ready": await self._renaming(*where, head["top"], head["gone"])}
            case _:
                await self._directories.renamed(*where, data(head["key"]), data(head["goal"]))
        return {}

    def _projection(self, number: int) -> Projection:
        projection = self._projections.get(number)
        if projection is None:
            raise errors.Missing("the projection has been taken away")
        return projection

    # --- finding -------------------------------------------------------------------------------

    async def _open(self, path: bytes) -> Head:
        top = find_path(self._tree, path)
        projection = self._projections.get(top.projection)
        if projection is None:
            raise errors.Unsupported(f"/{_shown(path)} lies in no projection: push what does")
        if not projection.row.writable:
            raise errors.Unsupported(
                f"/{_shown(path)} lies in a read-only projection: nothing was changed in it"
            )
        await self._writeback.commit()
        await adopt_hidden(self._tree, top.projection)
        await self._writeback.commit()
        key = b"" if top.ino == top.projection else None
        if top.ino != top.projection:
            key = key_of(
                self._tree, self._tree.inode(top.parent), top.name, self._tree.inode(top.ino)
            )
        options = json.loads(projection.row.options)
        return {
            "projection": top.projection,
            "top": top.ino,
            "url": projection.row.url,
            "options": {name: each for name, each in options.items() if name not in OWN_OPTIONS},
            "prefix": None if key is None else text(key),
            "mode": projection.row.mode,
        }

    # --- one file ------------------------------------------------------------------------------

    async def _begin(self, head: Mapping[str, Any]) -> Head:
        ino, parent, name = head["ino"], head["parent"], data(head["name"])
        found = self._found.as_it_is(ino, parent, name)
        if found is None:
            await self._writeback.commit()  # a directory above has got another name
            found = self._found.as_it_is(ino, parent, name)
        if found is None:
            return {"change": None}
        return {"change": change_to_wire(found[0]._replace(token=self._watch.begin(ino)))}

    async def _renaming(self, ino: int, parent: int, name: bytes, top: int, gone: bool) -> bool:
        found = self._found.as_it_is(ino, parent, name)
        if found is None or not (top in found[1] or ino == top):
            return False  # of a directory above the one that is pushed only the way is made
        return await self._directories.renaming(found[0], gone=gone)

    async def _read(self, head: Mapping[str, Any]) -> tuple[Head, bytes]:
        ino, token = head["ino"], head["token"]
        if not self._watch.unchanged(ino, token):
            return {"changed": True}, b""
        inode = self._tree.inode(ino)
        inode.opens += 1  # it stays in memory; nobody is told that it was closed
        try:
            data = await self._fs.reader.read_long(inode, head["offset"], head["length"])
        except fs_errors.RemoteVersionGone:
            raise errors.Changed(
                "the version that the local change is based on is not at the remote any more, and"
                " not all of it is here: write the whole file, or drop the change"
            ) from None
        finally:
            inode.opens -= 1
            self._tree.reap(inode)
        if len(data) < head["length"] or not self._watch.unchanged(ino, token):
            return {"changed": True}, b""
        return {"changed": False}, data

    # --- what was taken away, and conflicts ------------------------------------------------------

    async def _forget(self, projection: int, key: bytes) -> None:
        row = self._tree.remote.gone.get((projection, key))
        if row is None:
            return
        await self._writeback.room(0)
        await self._directories.no_listing(row.parent)
        remote = self._tree.remote
        remote.gone.set((projection, key), None)
        above = remote.dirs.get(row.parent)
        if above is None or not in_place(above.key, row.name, key):
            return  # the directory is another one by now
        remote.unhide(row.parent, row.name)


def _shown(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
