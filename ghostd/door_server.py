"""The door: what a worker process of ours may do with the store and the namespace.

Each connection has a thread: chunks go from its socket into the store without coming near the
filesystem's loop, which is asked for names and attributes only.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError, StorageFull
from blockstore.ids import Buffer, ChunkId
from blockstore.store import BlockStore
from ghostd.door_clones import wire_extents
from ghostd.door_reads import BYTES_MAX, content_of
from ghostd.door_tree import DoorTree
from ghostd.in_loop import InLoop
from syncer.catalogue import Snapshot, decode_snapshot
from syncer.door_protocol import (
    EXTENT,
    Extent,
    Head,
    Message,
    error_head,
    ids_of,
    receive,
    send,
    split,
    xattrs_to_wire,
)
from syncer.remotes import errors
from syncer.remotes.errors import Garbled, RemoteError

log = structlog.get_logger(__name__)

CONNECTIONS: Final = 4

Reply = tuple[Head, list[Buffer]]


@dataclass(eq=False, slots=True)
class _Visit:
    """One worker, and what it holds until it ends."""

    number: int
    connections: set[socket.socket] = field(default_factory=set)
    holds: int = 0


class SnapshotRecords(Protocol):
    """The snapshots of the daemon's store; for its loop."""

    async def all(self) -> list[Snapshot]:
        """All of them."""

    async def record(self, snapshot: Snapshot) -> None:
        """One more, whose chunks are durable and held."""


class DoorServer:
    """Serves the workers of this daemon."""

    def __init__(
        self,
        store: BlockStore,
        tree: DoorTree,
        snapshots: SnapshotRecords,
        loop: InLoop,
        mount: Path,
    ) -> None:
        self._snapshots = snapshots
        self._store = store
        self._tree = tree
        self._loop = loop
        self._mount = mount
        self._lock = threading.Lock()
        # Two at a time would wait for the interpreter's lock, and the mount with them.
        self._reading = threading.Lock()
        self._visits: set[_Visit] = set()
        self._numbers = itertools.count(1)
        self._ops: dict[str, Callable[[_Visit, Message], Reply]] = {
            "hello": self._hello,
            "bind": self._bind,
            "put": self._put,
            "fetch": self._fetch,
            "sync": self._sync,
            "read_many": self._read_many,
            "clone": self._clone,
            "clone_part": self._clone_part,
            "write": self._write,
            "stage": self._write,
            "hold": self._hold,
            "release": self._release,
            "snapshots": self._list_snapshots,
            "record": self._record,
        }

    @property
    def holds(self) -> int:
        """How many jobs store chunks that nothing names yet: a collection would remove them."""
        with self._lock:
            return sum(visit.holds for visit in self._visits)

    @property
    def visits(self) -> int:
        """How many workers there are, or have ended just now."""
        return len(self._visits)

    def open(self) -> list[socket.socket]:
        """The worker's ends of new connections; close them here when it has its copies."""
        theirs = []
        visit = _Visit(next(self._numbers))
        for _ in range(CONNECTIONS):
            ours, end = socket.socketpair()
            theirs.append(end)
            visit.connections.add(ours)
        with self._lock:
            self._visits.add(visit)
        for ours in list(visit.connections):
            threading.Thread(
                target=self._serve, args=(visit, ours), name="door", daemon=True
            ).start()
        return theirs

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            for visit in self._visits:
                for connection in visit.connections:
                    connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, visit: _Visit, connection: socket.socket) -> None:
        try:
            while (request := receive(connection)) is not None:
                head, body = self._answer(visit, request)
                send(connection, head, body)
        except RemoteError as error:
            log.debug("the door was closed", error=str(error))
        except Exception:
            log.exception("a request through the door failed")  # ends this connection only
        finally:
            with self._lock:
                visit.connections.discard(connection)
                if not visit.connections:
                    self._visits.discard(visit)  # the worker has ended, and with it what it began
                    self._loop.soon(partial(self._tree.stages.leave, visit.number))
            connection.close()

    def _answer(self, visit: _Visit, request: Message) -> Reply:
        try:
            return self._ops.get(request.head["op"], self._ask)(visit, request)
        except RemoteError as error:
            return error_head(error), []
        except StorageFull as error:
            return error_head(errors.Full(str(error))), []
        except OrbitError as error:
            return error_head(errors.Unreachable(str(error))), []

    # --- the store -----------------------------------------------------------------------------

    def _hello(self, _: _Visit, __: Message) -> Reply:
        chunker = self._store.options.chunker
        return {"mount": str(self._mount), "chunker": asdict(chunker)}, []

    def _bind(self, _: _Visit, request: Message) -> Reply:
        names = ids_of(request.body)
        with self._store.binding(names) as known:
            return {}, [bytes(name in known for name in names)]

    def _put(self, _: _Visit, request: Message) -> Reply:
        # Without the reserve the namespace could not even be made smaller.
        self._tree.check_room(len(request.body))
        names = self._store.put(split(request.body, request.head["lengths"]))
        return {}, [b"".join(names)]

    def _fetch(self, _: _Visit, request: Message) -> Reply:
        names = ids_of(request.body)
        try:
            found = self._store.fetch(names)
        except ChunkMissing as error:
            return {"missing": [error.chunk_id.hex()], "lengths": []}, []
        except ChunkDamaged as error:
            raise Garbled(str(error)) from error
        return {"missing": [], "lengths": [len(found[name]) for name in names]}, [
            found[name] for name in names
        ]

    def _sync(self, _: _Visit, __: Message) -> Reply:
        self._store.sync()
        return {}, []

    def _hold(self, visit: _Visit, _: Message) -> Reply:
        with self._lock:
            visit.holds += 1
        return {}, []

    def _release(self, visit: _Visit, _: Message) -> Reply:
        with self._lock:
            visit.holds = max(0, visit.holds - 1)
        return {}, []

    def _list_snapshots(self, _: _Visit, __: Message) -> Reply:
        records = [each.encode() for each in self._loop.wait(self._snapshots.all)]
        return {"lengths": [len(record) for record in records]}, list(records)

    def _record(self, _: _Visit, request: Message) -> Reply:
        snapshot = decode_snapshot(bytes(request.body))
        self._loop.wait(lambda: self._snapshots.record(snapshot))
        return {}, []

    # --- the namespace -------------------------------------------------------------------------

    def _ask(self, visit: _Visit, request: Message) -> Reply:
        head, body = self._loop.wait(lambda: self._tree.answer(request.head, visit=visit.number))
        return head, [body]

    def _read_many(self, _: _Visit, request: Message) -> Reply:
        files, xattrs = request.head["files"], request.head["xattrs"]
        looks = self._loop.wait(
            lambda: self._tree.looks.all(files, xattrs=xattrs, bytes_max=BYTES_MAX)
        )
        with self._reading:
            heads, parts = content_of(self._store, looks)
        return {"files": heads}, parts

    def _write(self, visit: _Visit, request: Message) -> Reply:
        """Files, or a part of one."""
        files: list[dict[str, Any]] = request.head["files"]
        every = list(EXTENT.iter_unpack(request.body))
        if len(every) != sum(file["extents"] for file in files):
            raise Garbled("a message through the door has the wrong length")
        extents: list[list[Extent]] = []
        at = 0
        for file in files:
            extents.append(every[at : at + file["extents"]])
            at += file["extents"]
        return self._named(visit, request.head, extents)

    def _named(self, visit: _Visit, head: Head, extents: list[list[Extent]]) -> Reply:
        """Until something names them, the chunks of extents count as live."""
        names = {ChunkId(chunk) for parts in extents for _, _, _, chunk in parts}
        with self._store.binding(list(names)) as known:
            if len(known) < len(names):
                for file, parts in zip(head["files"], extents, strict=True):
                    file["missing"] = any(ChunkId(part[3]) not in known for part in parts)
            answer, body = self._loop.wait(
                lambda: self._tree.answer(head, extents, visit=visit.number)
            )
        return answer, [body]

    def _clone(self, visit: _Visit, request: Message) -> Reply:
        """Small files that get what others show at this instant."""
        files, xattrs = request.head["files"], request.head["xattrs"]
        wanted = [(file["from"], file["token"]) for file in files]
        looks = self._loop.wait(lambda: self._tree.clones.all(wanted, xattrs=xattrs))
        results: list[Head] = []
        found: list[dict[str, Any]] = []
        extents: list[list[Extent]] = []
        for file, look in zip(files, looks, strict=True):
            if isinstance(look, RemoteError):
                results.append(error_head(look))
                continue
            if look.xattrs is not None:
                file["metadata"]["xattrs"] = xattrs_to_wire(look.xattrs)
            found.append(file | {"size": look.size})
            extents.append(wire_extents(look.extents))
            results.append({})
        answer, _ = self._named(visit, {"op": "write", "files": found}, extents)
        if "error" in answer:
            return answer, []
        written = iter(answer["results"])
        return {"results": [result or next(written) for result in results]}, []

    def _clone_part(self, visit: _Visit, request: Message) -> Reply:
        """More of a large file that gets what another one shows."""
        extents, at = self._loop.wait(lambda: self._tree.clones.part(visit.number, request.head))
        head = {"op": "stage", "path": request.head["path"], "stage": request.head["stage"]}
        answer, _ = self._named(visit, head | {"files": [{}]}, [extents])
        return answer | {"at": at}, []
