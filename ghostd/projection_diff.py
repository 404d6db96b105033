"""What a new listing of a remote directory changes in the namespace. Pure.

The listing comes page by page, in any order. For each page the caller looks up what the namespace
has under the page's names, and `compare` says what to do. What the remote has no more is known when
the listing is complete, not before: only `Complete`, which `Listing.complete` gives, names what
vanished, from the namespace's entries in any order.

In memory are one page and eight bytes of hash for each name listed: 11 MB for 10^6 names (18 MB
resident). Two names of one hash (once in 10^7 listings of 10^6 names) cost nothing that a later
listing does not mend: an entry that is gone stays shown, or one is shown under its escaped name or
left out.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from blake3 import blake3

from ghostd.remote_names import local_name
from syncer.remotes.remote import Entry, Kind, Version

_BUCKET_BITS = 14  # 10^6 names: 61 hashes a bucket, searched from end to end in about 1 µs


class Local(enum.Enum):
    """What was done here to an entry since it was listed."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"  # its bytes or attributes; of a directory: anything below it
    DELETED = "deleted"  # or moved away: its name is hidden


class Known(NamedTuple):
    """What the namespace has under a name."""

    name: bytes
    key: bytes | None  # as it was listed; None: made here
    kind: Kind
    version: Version | None = None  # of files
    target: bytes | None = None  # of symlinks
    local: Local = Local.UNCHANGED


class Action(enum.Enum):
    """What is to be done with a name."""

    ADD = "add"
    KEEP = "keep"  # the same state; attributes may have changed
    REPLACE = "replace"  # another version or kind: a new inode
    REMOVE = "remove"  # the entry, or what hides it
    CONFLICT = "conflict"  # changed here and there: what is here stays, and it is reported


class Step(NamedTuple):
    """One thing to do; without `entry` the remote has none, without `known` the namespace."""

    action: Action
    name: bytes
    entry: Entry | None
    known: Known | None


def compare(name: bytes, entry: Entry, known: Known | None) -> Step:
    """What to do about a listed entry, shown as `name`, of which the namespace has `known`."""
    if known is None:
        return Step(Action.ADD, name, entry, None)
    if _same(entry, known):
        return Step(Action.KEEP, name, entry, known)
    ours = known.key is None or known.local is not Local.UNCHANGED
    return Step(Action.CONFLICT if ours else Action.REPLACE, name, entry, known)


def _same(entry: Entry, known: Known) -> bool:
    if known.key != entry.key or known.kind is not entry.kind:
        return False
    if entry.kind is Kind.FILE:
        return known.version == entry.version
    return entry.kind is not Kind.SYMLINK or known.target == entry.target


class Listing:
    """A listing under way."""

    def __init__(self) -> None:
        self._names = NameSet()
        self.left_out = 0  # entries listed twice

    def page(self, entries: Iterable[Entry]) -> list[tuple[bytes, Entry]]:
        """The entries of a page with the names under which they are shown."""
        named = []
        for entry in entries:
            name = local_name(entry.name, entry.kind is Kind.DIRECTORY, self._names)
            if name is None:
                self.left_out += 1
                continue
            self._names.add(name)
            named.append((name, entry))
        return named

    def complete(self) -> Complete:
        """The remote has listed everything."""
        return Complete(self._names)


class Complete:
    """A listing that has ended."""

    def __init__(self, names: NameSet) -> None:
        self._names = names

    def vanished(self, known: Iterable[Known]) -> Iterator[Step]:
        """What to do about the entries of the namespace that were not listed.

        Those made here stay, and so do those changed here, which nothing remote stands for now.
        """
        for entry in known:
            if entry.key is None or entry.name in self._names:
                continue
            conflict = entry.local is Local.CHANGED
            yield Step(Action.CONFLICT if conflict else Action.REMOVE, entry.name, None, entry)


class NameSet:
    """A set of names in eight bytes each, which may hold one too many by a collision of hashes."""

    def __init__(self) -> None:
        self._buckets: dict[int, array[int]] = {}

    def add(self, name: bytes) -> None:
        """Put a name in; once only."""
        number = _hash(name)
        bucket = self._buckets.get(number >> (64 - _BUCKET_BITS))
        if bucket is None:
            bucket = self._buckets[number >> (64 - _BUCKET_BITS)] = array("Q")
        bucket.append(number)

    def __contains__(self, name: object) -> bool:
        assert isinstance(name, bytes)
        number = _hash(name)
        return number in self._buckets.get(number >> (64 - _BUCKET_BITS), ())


def _hash(name: bytes) -> int:
    # Not Python's: a remote's owner must not be able to choose names that collide.
    return int.from_bytes(blake3(name).digest(8), "little")
