"""What tests of repositories share: a server in memory that counts, and sessions of machines."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from blockstore.ids import chunk_id
from blockstore.options import StoreOptions
from syncer.context import Context
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.remote import Remote
from syncer.repository import Access, Repository

URL = "memory:"
SMALL = StoreOptions(pack_bytes_max=1 << 16, pending_chunks_max=8, cache_bytes_max=1 << 16)


def blobs(seed: int, count: int = 8, length: int = 10_000) -> list[bytes]:
    """Incompressible chunks."""
    source = random.Random(seed)
    return [source.randbytes(length) for _ in range(count)]


class Counted:
    """A server in memory, and what it was asked: method and the key's first component."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self.server = MemoryServer(self._before)

    async def _before(self, method: str, key: bytes) -> None:
        self.asked[method, key.partition(b"/")[0].decode()] += 1
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class Machine(Context):
    """One machine's surroundings: its cache, and a server that all machines reach."""

    server: MemoryServer | None = None

    async def open_remote(self, url: str, options: Mapping[str, str] | None = None) -> Remote:
        """The server in memory; files as ever."""
        if url == URL:
            assert self.server is not None
            return MemoryRemote(self.server)
        return await Context.open_remote(self, url, options)


def machine(folder: Path, server: MemoryServer | None = None) -> Machine:
    """A machine whose cache lies in `folder`."""
    return Machine(state=folder / "state", cache=folder / "cache", server=server)


@asynccontextmanager
async def opened(
    context: Context, access: Access = Access.WRITE, location: str = URL
) -> AsyncIterator[Repository]:
    """The repository, with small packs, made when it is not there."""
    async with Repository.open(
        location, context, access, create=access is Access.WRITE, options=SMALL
    ) as repository:
        yield repository


async def put(repository: Repository, chunks: Sequence[bytes], *, sync: bool = True) -> None:
    """Store chunks in a worker thread."""

    def work() -> None:
        repository.store.put(chunks)
        if sync:
            repository.store.sync()

    await trio.to_thread.run_sync(work)


async def holds(repository: Repository, chunks: Sequence[bytes]) -> None:
    """All chunks can be read."""
    ids = [chunk_id(chunk) for chunk in chunks]
    found = await trio.to_thread.run_sync(repository.store.fetch, ids)
    assert [found[name] for name in ids] == list(chunks)


async def sound(repository: Repository) -> None:
    """The oracle: every check of the store, every record read back."""
    check = partial(repository.store.blocks.check, data=True)
    for result in await trio.to_thread.run_sync(check):
        assert result.ok, (result.name, result.problems)
