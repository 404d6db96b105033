"""Walks trees of which the listings are yet to be asked for, several directories at a time.

Each walker goes down depth first and shares directories that it finds while there is room on the
common stack; the rest it visits itself. So memory is bounded, and a remote with slow round trips
has as many listings under way as there are walkers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from blockstore.errors import OrbitError
from ghostd.listings import Listings
from ghostd.tree import Tree
from ghostd.tree_walk import Seen, entries_page, parts_of, root_of, step, still_there

WALKERS: Final = 8
_SHARED_MAX: Final = 256  # directories on the common stack


async def look_up(tree: Tree, listings: Listings, path: bytes) -> Seen:
    """What a path leads to; asks remotes where needed.

    Raises NotFound, NotADirectory, RemoteError.
    """
    at = root_of(tree)
    for name in parts_of(path):
        if at.is_dir and at.projection:
            await listings.find(tree.inode(at.ino), name)
        at = step(tree, at, name)
    return at


class ListingWalk:
    """Visits everything at and below some entries once."""

    def __init__(
        self,
        tree: Tree,
        listings: Listings,
        *,
        visit: Callable[[Seen], Awaitable[None]],
        failed: Callable[[Seen, OrbitError], None],
        entered: Callable[[Seen], None] = lambda _: None,
    ) -> None:
        """`visit` is called with anything but directories, `failed` with unlisted directories.

        `entered` with those that have been listed.
        """
        self._entered = entered
        self._tree = tree
        self._listings = listings
        self._visit = visit
        self._failed = failed
        self._shared: list[Seen] = []
        self._busy = 0
        self._lot = trio.lowlevel.ParkingLot()

    async def run(self, tops: Iterable[Seen]) -> None:
        """Walk until everything has been visited."""
        for top in tops:
            if top.is_dir:
                self._shared.append(top)
            else:
                await self._visit(top)
        async with trio.open_nursery() as nursery:
            for _ in range(WALKERS):
                nursery.start_soon(self._walker)

    async def _walker(self) -> None:
        while True:
            while not self._shared:
                if not self._busy:
                    return
                await self._lot.park()
            self._busy += 1
            try:
                await self._walk(self._shared.pop())
            finally:
                self._busy -= 1
                if not self._busy:
                    self._lot.unpark_all()

    async def _walk(self, top: Seen) -> None:
        stack = [(top, 0)]
        while stack:
            directory, after = stack.pop()
            if not after:
                if not await self._listed(directory):
                    continue
                self._entered(directory)
            page = entries_page(self._tree, directory, after, self._tree.next_cookie)
            await trio.lowlevel.checkpoint()
            if not page:
                continue
            stack.append((directory, page[-1][0]))
            for _, entry in page:
                if not entry.is_dir:
                    await self._visit(entry)
                elif len(self._shared) < _SHARED_MAX:
                    self._shared.append(entry)
                    self._lot.unpark()
                else:
                    stack.append((entry, 0))

    async def _listed(self, directory: Seen) -> bool:
        if not directory.projection:
            return True
        if not still_there(self._tree, directory):
            return False
        try:
            await self._listings.fresh(self._tree.inode(directory.ino))
        except OrbitError as error:
            self._failed(directory, error)
            return False
        return True
