"""Removing snapshots from a repository, and what no other snapshot needs.

The records go first, durably; then the packs are rewritten whose dead part is large. What dies in
between leaves chunks that nobody names, which the next run removes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from blockstore.collect import CollectReport
from syncer.catalogue import Snapshot
from syncer.repository import Access, Repository, RepositoryInvalid
from syncer.snapshot_check import live_chunks

WASTE_MAX = 0.25  # of a pack that may be dead: less waste costs more copying

# A pack with a record of its own is begun before any is removed: its number is the highest there
# ever was. So no number comes back, whatever index of another machine remembers it.
_MARK = b"orbit prune"

Choose = Callable[[Sequence[Snapshot]], Sequence[Snapshot]]


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was removed, or with `dry_run` would be."""

    removed: tuple[Snapshot, ...]
    kept: tuple[Snapshot, ...]
    collection: CollectReport


async def prune(
    repository: Repository,
    choose: Choose = lambda _snapshots: (),
    *,
    dry_run: bool = False,
    waste_max: float = WASTE_MAX,
) -> PruneReport:
    """Remove the snapshots that `choose` returns of all, and what no other one names.

    The repository is open for PRUNE: nobody else has it. `waste_max` is the share of a pack that
    may be dead. Raises RepositoryInvalid when a snapshot's record cannot be read, RemoteError,
    StorageFull and StorageFailed; nothing that is needed is lost then, and it may be run again.
    """
    assert repository.access is Access.PRUNE
    listing = await repository.catalogue.list()
    if listing.damaged:
        raise RepositoryInvalid(
            f"{repository.label}: the record of {listing.damaged[0]} is damaged: what it names "
            "cannot be known. Bring it back from a copy, or remove that file to give it up"
        )
    gone = {snapshot.name for snapshot in choose(listing.snapshots)}
    removed = tuple(each for each in listing.snapshots if each.name in gone)
    kept = tuple(each for each in listing.snapshots if each.name not in gone)
    if not dry_run:
        for snapshot in removed:
            await repository.catalogue.remove(snapshot)
    collect = partial(_collect, repository, kept, dry_run=dry_run, waste_max=waste_max)
    return PruneReport(removed, kept, await trio.to_thread.run_sync(collect))


def _collect(
    repository: Repository, kept: Sequence[Snapshot], *, dry_run: bool, waste_max: float
) -> CollectReport:
    store = repository.store
    if not dry_run:
        store.blocks.append_root(_MARK)
        store.sync()
    roots = [(snapshot.root, snapshot.tokens) for snapshot in kept]
    return store.blocks.collect(
        lambda: live_chunks(store, roots), dry_run=dry_run, waste_max=waste_max, seal=True
    )
