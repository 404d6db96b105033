"""Opens the trees of a job: what SRC and DST lead to.

A single file has no tree of its own: `Ends` names it in the tree of the folder that it lies in, so
that whoever copies it needs nothing else than for one file among many.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import trio

from syncer.location import Location, LocationKind, split
from syncer.options import Options
from syncer.remotes.errors import Exists, Missing, Unsupported
from syncer.tree import ROOT, NodeKind, Page, Tree

if TYPE_CHECKING:
    from syncer.catalogue import Catalogue
    from syncer.chunks import ChunkStore
    from syncer.context import Context


_AWAY_S: Final = 0.05  # a guess: how long a remote repository takes to answer


@runtime_checkable
class HasSnapshots(Protocol):
    """A door to a daemon that hands out its store and catalogue."""

    @property
    def store(self) -> ChunkStore:
        """The daemon's chunks."""

    @property
    def catalogue(self) -> Catalogue:
        """The daemon's snapshots."""

    def holding(self) -> AbstractAsyncContextManager[None]:
        """Around storing what nothing names yet."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The two trees of a job, and the single file that it is about, if it is about one."""

    source: Tree
    destination: Tree
    file: bytes | None = None  # its path in `source`; None: all of it
    file_as: bytes = ROOT  # its path in `destination`


@asynccontextmanager
async def open_tree(
    location: Location, context: Context, options: Options | None = None
) -> AsyncIterator[Tree]:
    """The tree at a location, for the body; nothing is made. Raises RemoteError, OrbitError.

    A local folder, and what lies at a remote, may be missing until something is written.
    """
    async with AsyncExitStack() as stack:
        yield await _open(location, context, options or Options(), stack)


@asynccontextmanager
async def open_ends(
    source: Location, destination: Location, context: Context, options: Options | None = None
) -> AsyncIterator[Ends]:
    """Both trees of a job, for the body; nothing is made.

    Raises RemoteError, OrbitError; Missing when there is no SRC, Unsupported when SRC is a
    directory and DST is a file.
    """
    chosen = options or Options()
    async with AsyncExitStack() as stack:
        if not await _is_file(source, context, chosen):
            from_tree = await _open(source, context, chosen, stack)
            if await _is_file(destination, context, chosen, missing=True):
                raise Unsupported(f"{source} is a directory, {destination} is a file")
            yield Ends(from_tree, await _open(destination, context, chosen, stack))
            return
        if source.slash:
            raise Unsupported(f"{source} is a file: write it without the slash at the end")
        folder, name = split(source)
        from_tree = await _open(folder, context, chosen, stack)
        if destination.slash or await _is_directory(destination, context, chosen):
            to_tree = await _open(destination, context, chosen, stack)
            yield Ends(from_tree, to_tree, name, name)
        else:
            parent, name_there = split(destination)
            to_tree = await _open(parent, context, chosen, stack)
            yield Ends(from_tree, to_tree, name, name_there)


async def make_folder(url: str, context: Context) -> None:
    """Make the folder that a remote's URL names, and those above it, where it has folders.

    Nothing happens where it is there. Raises RemoteError.
    """
    location = Location(LocationKind.REMOTE, place=url)
    remote = await context.open_remote(url)
    try:
        if not remote.capabilities.mkdir:
            return
        try:
            await remote.stat(ROOT)
        except Missing:
            pass
        else:
            return
    finally:
        await _shielded(remote.close)
    above, name = split(location)
    parent = await context.open_remote(above.place)
    try:
        try:
            await parent.mkdir(name + b"/")
        except Missing:
            await make_folder(above.place, context)
            await parent.mkdir(name + b"/")
        except Exists:
            pass
    finally:
        await _shielded(parent.close)


async def _local_kind(path: bytes) -> int | None:
    """The format bits of what is at a local path; None: nothing. Raises RemoteError."""
    from syncer.remotes.local import system_errors

    def look() -> int | None:
        try:
            with system_errors(path):
                return stat.S_IFMT(Path(os.fsdecode(path)).stat().st_mode)
        except Missing:
            return None

    return await trio.to_thread.run_sync(look, abandon_on_cancel=True)


async def _is_file(
    location: Location, context: Context, options: Options, *, missing: bool = False
) -> bool:
    """Whether a location is anything but a directory. `missing`: what is not there is neither."""
    if location.kind is LocationKind.LOCAL and not _in_mount(location, context):
        kind = await _local_kind(location.path)
        if kind is None and not missing:
            raise Missing(f"{location}: there is no such file or directory")
        return kind is not None and kind != stat.S_IFDIR
    async with open_tree(location, context, options) as tree:
        try:
            return (await tree.stat(ROOT)).kind is not NodeKind.DIRECTORY
        except Missing:
            if missing:
                return False
            raise Missing(f"{location}: there is no such file or directory") from None


async def _is_directory(location: Location, context: Context, options: Options) -> bool:
    """Whether there is a directory, of object stores: anything below it."""
    if location.kind is LocationKind.LOCAL and not _in_mount(location, context):
        return await _local_kind(location.path) == stat.S_IFDIR
    if location.kind is LocationKind.REMOTE and location.place.rstrip("/").count("/") < 3:
        return True  # a server's or bucket's root
    async with open_tree(location, context, options) as tree:
        try:
            if (await tree.stat(ROOT)).kind is not NodeKind.DIRECTORY:
                return False
            return tree.features.directories or await _holds_anything(tree)
        except Missing:
            return False


class _Found(Exception):
    """There is an entry."""


async def _holds_anything(tree: Tree) -> bool:
    async def sink(page: Page) -> None:
        await trio.lowlevel.checkpoint()
        if page:
            raise _Found

    try:
        await tree.list(ROOT, sink)
    except _Found:
        return True
    return False


def _in_mount(location: Location, context: Context) -> bool:
    """Whether a local path leads into the mount of the daemon that we work for."""
    if context.door is None or context.mount is None:
        return False
    return location.path == context.mount or location.path.startswith(context.mount + b"/")


async def _open(
    location: Location, context: Context, options: Options, stack: AsyncExitStack
) -> Tree:
    match location.kind:
        case LocationKind.LOCAL:
            tree = await _open_local(location, context, options)
        case LocationKind.REMOTE:
            from syncer.rooted_tree import RootedTree

            remote = await context.open_remote(location.place)
            tree = RootedTree(remote, partial(make_folder, location.place, context))
        case _:
            return await _open_snapshot(location, context, stack)
    stack.push_async_callback(_shielded, tree.close)
    return tree


async def _shielded(close: Callable[[], Awaitable[None]]) -> None:
    with trio.CancelScope(shield=True):  # bounded in time by itself
        await close()


async def _open_local(location: Location, context: Context, options: Options) -> Tree:
    if _in_mount(location, context):
        from syncer.door import Door, DoorTree

        assert isinstance(context.door, Door)
        assert context.mount is not None
        return DoorTree(context.door, location.path.removeprefix(context.mount).strip(b"/"))
    from syncer.local_tree import LocalTree

    return await LocalTree.open(
        location.path, durable=options.durable, one_file_system=options.one_file_system
    )


async def _open_snapshot(location: Location, context: Context, stack: AsyncExitStack) -> Tree:
    from syncer.catalogue import LATEST, select
    from syncer.repository import Access, Repository
    from syncer.snapshot_tree import SnapshotTree

    if location.kind is LocationKind.REPOSITORY and not location.snapshot:
        raise Unsupported(
            f"{location} is a repository, not a tree: write {location}#SNAPSHOT for one in it"
        )
    place = location.place or context.repository
    if location.kind is LocationKind.SNAPSHOT and isinstance(context.door, HasSnapshots):
        store, catalogue = context.door.store, context.door.catalogue
    elif place:
        repository = await stack.enter_async_context(Repository.open(place, context, Access.READ))
        store, catalogue = repository.store, repository.catalogue
    else:
        raise Unsupported(
            f"{location}: in which repository? Write repo:LOCATION#{location.snapshot}, "
            "or name it with --repo"
        )
    known = (await catalogue.list()).snapshots
    snapshot = select(known, location.snapshot)
    tree = SnapshotTree(
        store,
        snapshot.root,
        label=str(location),
        at=location.path,
        round_trip_s=_AWAY_S if "://" in place else 0.0,
    )
    try:
        await tree.stat(ROOT)
    except Missing:
        tag = os.fsdecode(location.path)
        meant = location.snapshot == LATEST and any(tag in each.tags for each in known)
        hint = f"; the newest with that tag is {LATEST}:{tag}:" if meant else ""
        raise Missing(f"{location}: there is no such path in {snapshot.name}{hint}") from None
    return tree
