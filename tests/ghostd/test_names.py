"""Names between memory and the database: the overlay, and listings while everything changes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ghostd.errors import FilesystemError
from ghostd.filesystem import RENAME_EXCHANGE
from ghostd.overlay import GONE, DirectoryDelta, Overlay
from ghostd.tree import FrozenEpoch
from tests.ghostd.world import ROOT, World
from tests.simdisk import SimDisk

NAMES = st.sampled_from([b"%d" % n for n in range(12)])


class DeltaMachine(RuleBasedStateMachine):
    """One directory's delta against a dict: what it says of each name, in the order of cookies."""

    def __init__(self) -> None:
        super().__init__()
        self.delta = DirectoryDelta()
        self.model: dict[bytes, tuple[int, int, int]] = {}
        self.cookie = 100

    @rule(name=NAMES, ino=st.integers(1, 5), keep=st.booleans())
    def set(self, name: bytes, ino: int, keep: bool) -> None:
        old = self.model.get(name)
        if keep and old is not None and old[1] != GONE:
            cookie = old[0]  # replaced: it keeps its place
        else:
            self.cookie += 1
            cookie = self.cookie
        self._set(name, (cookie, ino, 1))

    @rule(name=NAMES, cookie=st.integers(1, 99))
    def replace_one_of_the_database(self, name: bytes, cookie: int) -> None:
        """A name that the database lists under an old cookie is replaced, out of order."""
        if all(entry[0] != cookie for entry in self.model.values()):
            self._set(name, (cookie, 9, 1))

    @rule(name=NAMES)
    def remove(self, name: bytes) -> None:
        self._set(name, (0, GONE, 1))

    def _set(self, name: bytes, entry: tuple[int, int, int]) -> None:
        self.delta.set(name, entry)
        self.model[name] = entry

    @rule(name=NAMES)
    def drop(self, name: bytes) -> None:
        if name in self.model:
            self.delta.drop(name)
            del self.model[name]

    @rule()
    def churn(self) -> None:
        """Enough changes that stale cookies are thrown out."""
        for _ in range(90):
            self.cookie += 1
            self._set(b"0", (self.cookie, 1, 1))

    @invariant()
    def lists_what_there_is(self) -> None:
        assert self.delta.names == self.model
        shown = sorted((c, name, ino) for name, (c, ino, _) in self.model.items() if ino != GONE)
        assert list(self.delta.after(0)) == shown
        for cookie, _, _ in shown:
            assert list(self.delta.after(cookie)) == [entry for entry in shown if entry[0] > cookie]


TestDirectoryDelta = DeltaMachine.TestCase
TestDirectoryDelta.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class OverlayMachine(RuleBasedStateMachine):
    """The overlay over a dict that plays the database, with commits that fail or succeed."""

    def __init__(self) -> None:
        super().__init__()
        self.overlay = Overlay()
        self.stored: dict[tuple[int, bytes], tuple[int, int]] = {}
        self.model: dict[tuple[int, bytes], tuple[int, int]] = {}
        self.epoch = 1
        self.cookie = 10
        self.frozen: list | None = None
        self.barrier: dict = {}

    @rule(parent=st.integers(1, 2), name=NAMES, gone=st.booleans())
    def set(self, parent: int, name: bytes, gone: bool) -> None:
        self.cookie += 1
        if gone:
            self.overlay.set(parent, name, 0, GONE, self.epoch)
            self.model.pop((parent, name), None)
        else:
            self.overlay.set(parent, name, self.cookie, 5, self.epoch)
            self.model[parent, name] = (self.cookie, 5)

    @rule()
    @precondition(lambda self: self.frozen is None)
    def freeze(self) -> None:
        self.frozen = self.overlay.freeze()
        self.barrier = dict(self.model)
        self.epoch += 1
        assert not len(self.overlay)

    @rule(applied_first=st.booleans())
    @precondition(lambda self: self.frozen is not None)
    def commit(self, applied_first: bool) -> None:
        assert self.frozen is not None
        for parent, name, cookie, ino in self.frozen:
            if ino == GONE:
                self.stored.pop((parent, name), None)
            else:
                self.stored[parent, name] = (cookie, ino)
        assert self.stored == self.barrier
        self.overlay.committed(self.frozen, self.epoch - 1)
        self.frozen = None

    @rule()
    @precondition(lambda self: self.frozen is not None)
    def fail(self) -> None:
        assert self.frozen is not None
        self.overlay.thaw(self.frozen)
        self.frozen = None

    @invariant()
    def both_together_show_what_there_is(self) -> None:
        for parent in (1, 2):
            for number in range(12):
                name = b"%d" % number
                entry = self.overlay.get(parent, name)
                if entry is None:
                    found = self.stored.get((parent, name))
                else:
                    found = None if entry[1] == GONE else entry[:2]
                assert found == self.model.get((parent, name))

    @invariant()
    def what_is_committed_takes_no_memory(self) -> None:
        if self.frozen is None and not len(self.overlay):
            assert not self.overlay.directories


TestOverlay = OverlayMachine.TestCase
TestOverlay.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Listing:
    """A `readdir` under way: the names that were there from its beginning until now."""

    def __init__(self, world: World, present: set[bytes], page: int) -> None:
        self.world = world
        self.below = world.tree.next_cookie
        self.after = 0
        self.page = page
        self.throughout = set(present)
        self.seen: list[bytes] = []

    def next_page(self) -> bool:
        """Read on; False at the end."""
        count = 0
        for cookie, name, inode, row in self.world.tree.list_page(
            1, self.after, self.below, self.page
        ):
            assert cookie > self.after
            assert (inode is None) != (row is None)
            self.after = cookie
            self.seen.append(name)
            count += 1
        return count > 0


class ListingMachine(RuleBasedStateMachine):
    """Listings in pages while names come, go, are renamed, committed and rolled back."""

    @initialize(count=st.integers(0, 40), page=st.integers(1, 8))
    def start(self, count: int, page: int) -> None:
        self.world = World(SimDisk(1))
        self.page = page
        self.present: set[bytes] = set()
        self.listings: list[Listing] = []
        self.frozen: FrozenEpoch | None = None
        for number in range(count):
            self.create(b"old%d" % number)
        self.freeze()
        self.commit()

    def create(self, name: bytes) -> None:
        self.world.fs.create(1, name, 0o100644, ROOT)
        self.present.add(name)

    @rule(name=NAMES)
    def make(self, name: bytes) -> None:
        if name not in self.present:
            self.create(name)

    def _lost(self, name: bytes) -> None:
        self.present.discard(name)
        for listing in self.listings:
            listing.throughout.discard(name)

    @rule(first=st.integers(0, 40), count=st.integers(1, 30))
    def remove(self, first: int, count: int) -> None:
        for name in sorted(self.present)[first : first + count]:
            self.world.fs.unlink(1, name)
            self._lost(name)

    @rule(which=st.integers(0, 50), name=NAMES, exchange=st.booleans())
    def rename(self, which: int, name: bytes, exchange: bool) -> None:
        if not self.present:
            return
        source = sorted(self.present)[which % len(self.present)]
        try:
            self.world.fs.rename(1, source, 1, name, RENAME_EXCHANGE if exchange else 0)
        except FilesystemError:
            assert exchange
            assert name not in self.present
            return
        if not exchange and source != name:
            self._lost(source)
            self.present.add(name)

    @rule()
    def open(self) -> None:
        self.listings.append(Listing(self.world, self.present, self.page))

    @rule(which=st.integers(0, 9), pages=st.integers(1, 4))
    @precondition(lambda self: self.listings)
    def read(self, which: int, pages: int) -> None:
        listing = self.listings[which % len(self.listings)]
        for _ in range(pages):
            if not listing.next_page():
                self._finished(listing)
                self.listings.remove(listing)
                return

    def _finished(self, listing: Listing) -> None:
        assert len(set(listing.seen)) == len(listing.seen), "shown twice"
        assert listing.throughout <= set(listing.seen), listing.throughout - set(listing.seen)

    @rule()
    @precondition(lambda self: self.frozen is None)
    def freeze(self) -> None:
        self.frozen = self.world.tree.freeze()

    @rule()
    @precondition(lambda self: self.frozen is not None)
    def apply_only(self) -> None:
        """The database already shows the epoch, the tree does not know yet."""
        assert self.frozen is not None
        self.world.namespace.apply(self.frozen.changes())

    @rule()
    @precondition(lambda self: self.frozen is not None)
    def commit(self) -> None:
        assert self.frozen is not None
        self.world.namespace.apply(self.frozen.changes())
        self.world.tree.committed(self.frozen)
        self.frozen = None

    @rule()
    @precondition(lambda self: self.frozen is not None)
    def fail(self) -> None:
        assert self.frozen is not None
        self.world.tree.thaw(self.frozen)
        self.frozen = None

    @invariant()
    def a_fresh_listing_is_exact(self) -> None:
        if hasattr(self, "world"):
            found = [name for name, _ in self.world.listing(1, page=self.page)]
            assert sorted(found) == sorted(self.present)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for listing in self.listings:
            while listing.next_page():
                pass
            self._finished(listing)
        self.world.close()


TestListing = ListingMachine.TestCase
TestListing.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("removed", [3, 7, 20])
def test_a_listing_goes_on_behind_a_page_of_removed_names(removed: int) -> None:
    """A page whose names are all gone, but not committed, is not the end of the directory."""
    world = World(SimDisk(1))
    for number in range(30):
        world.fs.create(1, b"%02d" % number, 0o100644, ROOT)
    frozen = world.tree.freeze()
    world.namespace.apply(frozen.changes())
    world.tree.committed(frozen)
    for number in range(removed):
        world.fs.unlink(1, b"%02d" % number)
    found = [name for name, _ in world.listing(1, page=3)]
    assert found == [b"%02d" % number for number in range(removed, 30)]
    world.close()
