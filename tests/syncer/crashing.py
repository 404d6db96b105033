"""A process that uses a repository and is killed at its n-th act, and one that looks afterwards.

Acts are requests to the remote, before and after they are done, and everything that the store does
to its disk. Both run in processes of their own: see `test_repository_crash`.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from blockstore.disk import OsDisk, OsFile
from syncer.context import Context
from syncer.prune import prune
from syncer.remotes.remote import Remote
from syncer.remotes.wrapper import Call, Wrapper
from syncer.repository import Access, Repository, unlock
from syncer.snapshot_check import snapshot_check
from tests.syncer.repositories import opened, put, sound
from tests.syncer.saved import save, snapshot

T = TypeVar("T")


class Clock:
    """Counts acts, and ends the process at one of them."""

    def __init__(self, kill_at: int) -> None:
        self._kill_at = kill_at
        self.acts = 0

    def act(self) -> None:
        """One more."""
        self.acts += 1
        if self.acts == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class Dying(Wrapper):
    """A remote whose user dies at some request, or after its answer."""

    def __init__(self, inner: Remote, clock: Clock) -> None:
        super().__init__(inner)
        self._clock = clock

    async def _call(self, call: Call[T]) -> T:
        self._clock.act()
        result = await call.go()
        self._clock.act()
        return result


@dataclass(frozen=True, slots=True)
class Mortal(Context):
    """Surroundings whose remotes are `Dying`."""

    clock: Clock | None = None

    async def open_remote(self, url: str, options: Mapping[str, str] | None = None) -> Remote:
        """See Context."""
        remote = await Context.open_remote(self, url, options)
        assert self.clock is not None
        return Dying(remote, self.clock)


def _counting(clock: Clock, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        clock.act()
        return function(*args, **options)

    return counted


def _watch_disk(clock: Clock) -> None:
    for owner, names in (
        (OsFile, ("pwritev", "fdatasync", "truncate", "close")),
        (OsDisk, ("unlink", "rename", "fsync_dir")),
    ):
        for name in names:
            setattr(owner, name, _counting(clock, getattr(owner, name)))


def folder_of(base: Path, number: int) -> Path:
    """What is backed up the n-th time: half of it as the time before."""
    folder = base / f"source{number}"
    if not folder.exists():
        folder.mkdir(parents=True)
        for each in range(14):
            source = random.Random(each if each < 7 else 100 * number + each)
            (folder / f"{each}").write_bytes(source.randbytes(20_000))
    return folder


async def _record(repository: Repository, base: Path, number: int) -> None:
    root = await trio.to_thread.run_sync(save, repository.store, folder_of(base, number))
    await repository.catalogue.add(snapshot(f"number {number}", root, number + 1))


async def _live(context: Context, base: Path, location: str) -> None:
    """Three backups, the oldest two removed, one more."""
    async with opened(context, location=location) as repository:
        known = {each.name for each in (await repository.catalogue.list()).snapshots}
        for number in range(3):
            if f"number {number}" not in known:
                await _record(repository, base, number)
    async with opened(context, Access.PRUNE, location) as repository:
        await prune(repository, lambda snapshots: [s for s in snapshots if s.time_ns <= 2])
    async with opened(context, location=location) as repository:
        if "number 3" not in {each.name for each in (await repository.catalogue.list()).snapshots}:
            await _record(repository, base, 3)


async def _look(context: Context, base: Path, location: str) -> None:
    """Every snapshot is whole; what was interrupted can be done again."""
    await unlock(location, context, force=True)  # it may have been cut off while it was written
    for access in (Access.READ, Access.WRITE):
        async with opened(context, access, location) as repository:
            listing = await repository.catalogue.list()
            assert not listing.damaged
            roots = [(each.root, each.tokens) for each in listing.snapshots]
            check = partial(snapshot_check, repository.store, roots, data=True)
            report = await trio.to_thread.run_sync(check)
            assert report.ok, report.problems
            if access is Access.WRITE:
                await sound(repository)
                await put(repository, [b"more"])
                await _record(repository, base, 9)
                await repository.catalogue.remove((await repository.catalogue.list()).snapshots[-1])
    async with opened(context, Access.PRUNE, location) as repository:
        await prune(repository)
        await sound(repository)


def _run(
    act: Callable[[Context, Path, str], Any], context: Context, base: Path, location: str
) -> None:
    try:
        trio.run(act, context, base, location)
    finally:
        context.close()


def live(base: Path, location: str, kill_at: int) -> None:
    """Use the repository until the act `kill_at`; 0: to the end, and tell how many there were."""
    clock = Clock(kill_at)
    _watch_disk(clock)
    context = Mortal(cache=base / "cache", clock=clock)
    _run(_live, context, base, location)
    (base / "acts").write_text(str(clock.acts))


def look(base: Path, location: str, cache: Path) -> None:
    """Look at what is there, with another machine's cache or the same."""
    context = replace(Context(), cache=cache)
    _run(_look, context, base, location)
