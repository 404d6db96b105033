"""A listing applied to the namespace, against what should be there afterwards."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ghostd.projection_diff import Action, Known, Listing, Local, NameSet, Step, compare
from syncer.remotes.remote import Entry, Kind

Namespace = dict[bytes, Known]

plain = st.sampled_from([b"a", b"b", b"c", b"d", b"", b"..", b"x\0y", b"n" * 300])


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    name = draw(plain)
    kind = draw(st.sampled_from(Kind))
    key = b"top/" + name + (b"/" if kind is Kind.DIRECTORY else b"")
    if kind is Kind.FILE:
        return Entry(key, kind, size=draw(st.integers(0, 2)), etag=draw(st.sampled_from("pq")))
    if kind is Kind.SYMLINK:
        return Entry(key, kind, target=draw(st.sampled_from([b"t", b"u"])))
    return Entry(key, kind)


listings = st.lists(entries(), max_size=8, unique_by=lambda entry: entry.key)
# What is done here between two listings: to names that are there, or new ones.
changes = st.dictionaries(
    st.sampled_from([b"a", b"b", b"c", b"d", b"@orbit:.."]), st.sampled_from(Local), max_size=4
)


def known_as(name: bytes, entry: Entry) -> Known:
    version = entry.version if entry.kind is Kind.FILE else None
    return Known(name, entry.key, entry.kind, version, entry.target)


def run(namespace: Namespace, pages: list[list[Entry]], *, complete: bool = True) -> list[Step]:
    """One listing, page by page, applied as it comes."""
    listing = Listing()
    steps = []
    for page in pages:
        some = [compare(name, entry, namespace.get(name)) for name, entry in listing.page(page)]
        apply(namespace, some)
        steps += some
    if complete:
        gone = list(listing.complete().vanished(list(namespace.values())))
        apply(namespace, gone)
        steps += gone
    return steps


def apply(namespace: Namespace, steps: list[Step]) -> None:
    for action, name, entry, known in steps:
        assert namespace.get(name) == known
        if action in {Action.ADD, Action.REPLACE}:
            assert entry is not None
            namespace[name] = known_as(name, entry)
        elif action is Action.REMOVE:
            del namespace[name]
        elif action is Action.CONFLICT and entry is None:
            assert known is not None
            namespace[name] = known._replace(key=None)  # nothing remote stands for it now


def change(namespace: Namespace, local: dict[bytes, Local]) -> None:
    for name, what in local.items():
        known = namespace.get(name)
        if known is not None and known.key is not None:
            namespace[name] = known._replace(local=what)
        elif known is None and what is Local.CHANGED:
            namespace[name] = Known(name, None, Kind.FILE if name < b"c" else Kind.DIRECTORY)


def paged(listing: list[Entry], seed: int) -> list[list[Entry]]:
    dice = random.Random(seed)
    shuffled = dice.sample(listing, len(listing))
    size = dice.randint(1, 4)
    return [shuffled[at : at + size] for at in range(0, len(shuffled), size)]


def shown(listing: list[Entry]) -> dict[bytes, Entry]:
    """The names of a listing in this order."""
    return dict(Listing().page(listing))


@settings(deadline=None, max_examples=300)
@given(listings, changes, listings, st.integers(0, 99))
def test_after_a_listing_the_namespace_shows_it_and_what_was_changed_here(
    first: list[Entry], local: dict[bytes, Local], second: list[Entry], seed: int
) -> None:
    namespace: Namespace = {}
    run(namespace, paged(first, seed))
    change(namespace, local)
    before = dict(namespace)
    pages = paged(second, seed + 1)
    remote = shown(list(itertools.chain(*pages)))
    steps = run(namespace, pages)

    conflicts = {step.name for step in steps if step.action is Action.CONFLICT}
    for name in before.keys() | remote.keys():
        old, entry, new = before.get(name), remote.get(name), namespace.get(name)
        changed_there = entry is None or old is None or known_as(name, entry)[:5] != old[:5]
        if old is None or (old.key is not None and old.local is Local.UNCHANGED):
            assert new == (None if entry is None else known_as(name, entry))
            assert name not in conflicts
        elif old.key is None:  # made here
            assert new == old
            assert (name in conflicts) == (entry is not None)
        elif old.local is Local.DELETED and entry is None:
            assert new is None  # both have deleted it
            assert name not in conflicts
        else:
            assert new is not None
            assert new[2:] == old[2:]
            assert (name in conflicts) == changed_there


@settings(deadline=None)
@given(listings, changes, listings, st.integers(0, 99))
def test_a_listing_that_breaks_off_removes_nothing(
    first: list[Entry], local: dict[bytes, Local], second: list[Entry], seed: int
) -> None:
    namespace: Namespace = {}
    run(namespace, paged(first, seed))
    change(namespace, local)
    before = set(namespace)
    pages = paged(second, seed + 1)
    for count in range(len(pages) + 1):
        run(namespace, pages[:count], complete=False)
        assert before <= set(namespace)


@settings(deadline=None)
@given(listings, listings, st.integers(0, 99))
def test_the_same_listing_again_changes_nothing(
    first: list[Entry], second: list[Entry], seed: int
) -> None:
    namespace: Namespace = {}
    run(namespace, paged(first, seed))
    pages = paged(second, seed + 1)
    run(namespace, pages)
    assert {step.action for step in run(namespace, pages)} <= {Action.KEEP}


def test_a_directory_made_here_is_not_taken_for_a_remote_one() -> None:
    made = Known(b"d", None, Kind.DIRECTORY)
    assert compare(b"d", Entry(b"top/d/", Kind.DIRECTORY), made).action is Action.CONFLICT


def test_an_entry_listed_twice_is_shown_once() -> None:
    listing = Listing()
    entry = Entry(b"..", Kind.FILE)
    assert [name for name, _ in listing.page([entry, entry])] == [b"@orbit:.."]
    assert listing.left_out == 1


@given(st.sets(st.binary(max_size=20), max_size=200), st.sets(st.binary(max_size=20)))
def test_the_set_of_names(names: set[bytes], others: set[bytes]) -> None:
    held = NameSet()
    for name in names:
        held.add(name)
    assert all(name in held for name in names)
    assert {name for name in others if name in held} == names & others


def test_names_take_about_ten_bytes_each() -> None:
    held = NameSet()
    count = 200_000
    for number in range(count):
        held.add(b"%d" % number)
    buckets = held._buckets.values()
    assert sum(len(bucket) for bucket in buckets) == count
    assert sum(bucket.__sizeof__() for bucket in buckets) < 10 * count + 16_384 * 96
