"""The snapshots of this daemon: taking, finding and removing them.

What must hold: a record is written when everything that it names is durable, and removed durably
before a collection may begin; both happen under the keeper's lock, as collections do, so that none
sees half of it. Who stores chunks for a snapshot outside of this module counts in `Keeper.holds`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from blockstore.errors import OrbitError
from ghostd.errors import FilesystemError
from ghostd.keeper import Keeper
from ghostd.snapshots_writing import SnapshotRefused, TreeTaker, WrittenTree
from ghostd.threads import Threads
from syncer.catalogue import (
    SUFFIX,
    Listing,
    Snapshot,
    SnapshotFolder,
    check_name,
    choose_name,
    select,
)
from syncer.remotes.errors import Exists

log = structlog.get_logger(__name__)

_FIRST_EXPIRY_S: Final = 60.0  # after the start
_DAY_S: Final = 86_400.0


class SnapshotInUse(FilesystemError):
    """The snapshot is projected somewhere."""


@dataclass(frozen=True, slots=True)
class TakenSnapshot:
    """A snapshot, and the tree that was written for it."""

    snapshot: Snapshot
    tree: WrittenTree


class Snapshots:
    """Owned by the filesystem's loop."""

    def __init__(
        self,
        keeper: Keeper,
        records: SnapshotFolder,
        taker: TreeTaker,
        threads: Threads,
        *,
        mount: bytes,
        projected: Callable[[], Awaitable[Mapping[str, Sequence[bytes]]]] | None = None,
        hand_over: Callable[[], Awaitable[None]] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`mount`: of which the sources of snapshots are part; `projected`: by name, where.

        `hand_over` has the kernel tell what has been written into open files.
        """
        self._keeper = keeper
        self._records = records
        self._taker = taker
        self._threads = threads
        self._mount = mount.rstrip(b"/")
        self._projected = projected
        self._hand_over = hand_over
        self._now_ns = now_ns
        self._known: dict[str, Snapshot] | None = None  # None: not read yet
        self._unreadable: set[str] = set()
        self._reading = trio.Lock()
        # Told the name of what came (True) or went.
        self.changed: list[Callable[[str, bool], Awaitable[None]]] = []

    # --- finding -------------------------------------------------------------------------------

    async def all(self) -> list[Snapshot]:
        """All snapshots, oldest first. Raises StorageFailed, FormatTooNew."""
        return sorted((await self._load()).values(), key=lambda each: (each.time_ns, each.name))

    async def find(self, selector: str) -> Snapshot:
        """What a name, the beginning of an id, `latest` or `latest:TAG` means. Raises Missing."""
        known = await self._load()
        return known.get(selector) or select(known.values(), selector)

    async def named(self, name: str) -> Snapshot | None:
        """The snapshot of exactly this name."""
        return (await self._load()).get(name)

    async def _load(self) -> dict[str, Snapshot]:
        # Not before somebody asks: a start costs nothing, however many there are. A record never
        # changes, so that the names tell whether somebody else has added or removed one.
        async with self._reading:
            names = await self._threads.run("read", self._records.names)
            if self._known is None or names != self._known.keys() | self._unreadable:
                listing: Listing = await self._threads.run("read", self._records.list)
                self._known = {each.name: each for each in listing.snapshots}
                unreadable = {name.removesuffix(SUFFIX) for name in listing.damaged}
                for name in unreadable - self._unreadable:
                    log.warning("the record of a snapshot is damaged", snapshot=name)
                self._unreadable = unreadable
            return self._known

    async def projected(self) -> Mapping[str, Sequence[bytes]]:
        """By name, the paths at which snapshots are projected."""
        return {} if self._projected is None else await self._projected()

    # --- taking --------------------------------------------------------------------------------

    async def take(
        self,
        path: bytes,
        *,
        name: str = "",
        tags: Sequence[str] = (),
        expires_s: float | None = None,
    ) -> TakenSnapshot:
        """Take a snapshot of a directory of the namespace; durable when this returns.

        Raises BadName, Exists, NotFound, NotADirectory, SnapshotRefused, StorageFull,
        StorageFailed.
        """
        if name:
            check_name(name)
        async with self._keeper.exclusive():
            known = await self._load()
            if name in known:
                raise Exists(f"there is a snapshot {name!r} already: choose another name")
            if self._hand_over is not None:
                await self._hand_over()
            written = await self._taker.write(path)
            source = self.source_of(written.path)
            expires_ns = None if expires_s is None else written.time_ns + int(expires_s * 1e9)
            snapshot = Snapshot(
                name=name or choose_name(source, written.time_ns, known.keys()),
                time_ns=written.time_ns,
                root=written.root,
                sums=written.sums,
                host=socket.gethostname(),
                source=source,
                tags=tuple(tags),
                expires_ns=expires_ns,
            )
            await self.record(snapshot)
        return TakenSnapshot(snapshot, written)

    async def tree_now(self, path: bytes) -> WrittenTree:
        """A directory as a tree that no snapshot names: it is gone after the next collection."""
        async with self._keeper.exclusive():
            if self._hand_over is not None:
                await self._hand_over()
            return await self._taker.write(path)

    async def record(self, snapshot: Snapshot) -> None:
        """Record a snapshot whose chunks are durable. Raises Exists, StorageFull, StorageFailed.

        The caller holds `Keeper.exclusive`, or counts in `Keeper.holds` since its first chunk.
        """
        await self._load()
        async with self._reading:
            await self._threads.run("commit", self._records.add, snapshot)
            assert self._known is not None
            self._known[snapshot.name] = snapshot
        await self._tell(snapshot.name, there=True)

    def source_of(self, path: bytes) -> str:
        """How a directory of the namespace is called as a source."""
        return os.fsdecode(self._mount + path.rstrip(b"/")) or "/"

    def path_of(self, snapshot: Snapshot) -> bytes:
        """The directory of the namespace that it was taken of. Raises SnapshotRefused."""
        source = os.fsencode(snapshot.source)
        if source != self._mount and not source.startswith(self._mount + b"/"):
            raise SnapshotRefused(
                f"snapshot {snapshot.name!r} was taken of {snapshot.source}, which does not lie in"
                f" {os.fsdecode(self._mount)}: there is no live tree to compare it with"
            )
        return source.removeprefix(self._mount) or b"/"

    # --- removing ------------------------------------------------------------------------------

    async def remove(self, snapshots: Sequence[Snapshot], *, force: bool = False) -> None:
        """Remove snapshots. What only they hold is freed by the next collection.

        Raises SnapshotInUse (unless `force`), Missing, StorageFailed.
        """
        if not force:
            projected = await self.projected()
            for snapshot in snapshots:
                if places := projected.get(snapshot.name):
                    raise SnapshotInUse(
                        f"snapshot {snapshot.name!r} is projected at"
                        f" {', '.join(os.fsdecode(each) for each in places)}: unproject it first;"
                        " --force removes it all the same, and what is shown there is lost"
                    )
        async with self._keeper.exclusive():
            await self._load()
            for snapshot in snapshots:
                async with self._reading:
                    await self._threads.run("commit", self._records.remove, snapshot)
                    assert self._known is not None
                    self._known.pop(snapshot.name, None)
                await self._tell(snapshot.name, there=False)

    async def run(self) -> None:
        """Remove what has expired, every day, until cancelled."""
        await trio.sleep(_FIRST_EXPIRY_S)
        while True:
            try:
                await self.expire()
            except OrbitError as error:
                log.warning("expired snapshots could not be removed", error=str(error))
            await trio.sleep(_DAY_S)

    async def expire(self) -> list[str]:
        """Remove what has expired and is not projected; their names."""
        now = self._now_ns()
        gone = []
        for snapshot in await self.all():
            if snapshot.expires_ns is None or snapshot.expires_ns > now:
                continue
            try:
                await self.remove([snapshot])
            except SnapshotInUse as error:
                log.warning("an expired snapshot stays", snapshot=snapshot.name, error=str(error))
                continue
            gone.append(snapshot.name)
            log.info("an expired snapshot was removed", snapshot=snapshot.name)
        return gone

    async def _tell(self, name: str, *, there: bool) -> None:
        self._keeper.snapshots_changed()
        for told in self.changed:
            await told(name, there)
