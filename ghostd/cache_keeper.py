"""Keeps the cache of fetched blocks within its limits, and what is pinned in it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import apsw
import structlog
import trio

from blockstore.errors import OrbitError
from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.namespace import Namespace, translated
from ghostd.remote_rows import ID_BYTES
from ghostd.threads import Threads

log = structlog.get_logger(__name__)

_LOOK_S: Final = 2.0


class PinnedBlocks:
    """Which blocks belong to pinned files, as of the last commit; for any thread."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def __call__(self, ids: Collection[ChunkId]) -> set[ChunkId]:
        """Those of `ids` that must stay. When that cannot be told, all must."""
        try:
            connection = self._namespace.snapshot()
        except OrbitError:
            return set(ids)
        try:
            return self._among(connection, set(ids))
        except apsw.Error as error:
            log.warning(
                "pinned blocks are unknown, nothing is evicted",
                error=str(translated(error, self._namespace.path)),
            )
            return set(ids)
        finally:
            self._namespace.end_snapshot(connection)

    @staticmethod
    def _among(connection: apsw.Connection, ids: set[ChunkId]) -> set[ChunkId]:
        found: set[ChunkId] = set()
        rows = connection.execute(
            "SELECT b.ids FROM versions v JOIN blocks b ON b.version = v.id WHERE v.pinned = 1"
        )
        for (blob,) in rows:
            for at in range(0, len(blob), ID_BYTES):
                name = ChunkId(blob[at : at + ID_BYTES])
                if name in ids:
                    found.add(name)
            if len(found) == len(ids):
                break
        return found


async def keep_cache(store: BlockStore, threads: Threads) -> None:
    """Evict what is too much, until cancelled."""
    failing = False
    while True:
        try:
            while (await threads.run("maintenance", store.evict_step)).more:
                await trio.lowlevel.checkpoint()
            failing = False
        except OrbitError as error:
            if not failing:
                log.warning("the cache of fetched blocks could not be trimmed", error=str(error))
            failing = True
        await trio.sleep(_LOOK_S)
