"""Both sides of many local directories at once. Blocks: for threads.

Most files of a second sync are as they were. Such a pair costs two calls to the system and a few
comparisons here: no node is made for it, and nothing is handed on but a count.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

import trio

from syncer.diff import Rules
from syncer.filters import Filters
from syncer.local_nodes import node_of
from syncer.local_parts import is_part
from syncer.local_root import Directories
from syncer.local_scan import Scanner
from syncer.local_tree import LocalTree
from syncer.remotes.errors import RemoteError
from syncer.remotes.local import system_errors
from syncer.tree import Node, Tree
from syncer.walk_twin import Dressed, Looked, Row, Twin

if TYPE_CHECKING:
    from syncer.walk_events import Directory

VISITS_MAX: Final = 64  # directories of one call
NODES_MAX: Final = 20_000  # of one of them, else it is listed in pages
_CALL_ENTRIES_MAX: Final = 40_000  # looked at in one call: what cancelling may have to wait for
_TWIN_VISITS_MIN: Final = 32  # of one call: fewer are done before another process has begun
_PART_START: Final = ".orbit-"

_FORMAT: Final = 0o170000  # of a mode: the kind of file
_REGULAR: Final = 0o100000

Found = dict[str, "os.DirEntry[str]"]
Same = Callable[[os.stat_result, Row], bool]


class Wanted(Protocol):
    """What `Bulk` must know of a directory. See walk.Visit."""

    directory: Directory
    filters: Filters

    @property
    def in_source(self) -> bool:
        """Whether the source has it."""

    @property
    def in_destination(self) -> bool:
        """Whether the destination has it."""


@dataclass(slots=True)
class Both:
    """What was found in one directory."""

    sources: list[Node] = field(default_factory=list)
    targets: list[Node] = field(default_factory=list)
    equal: int = 0  # files that are in neither list
    equal_bytes: int = 0
    source_error: RemoteError | None = None
    target_error: RemoteError | None = None


def bulk_of(source: Tree, destination: Tree, rules: Rules, *, quick: bool) -> Bulk | None:
    """What lists both trees at once; None: they are not both local."""
    if not (isinstance(source, LocalTree) and isinstance(destination, LocalTree)):
        return None
    same = _same_by(rules) if quick and not rules.by_content else None
    return Bulk(source, destination, same, xattrs=rules.xattrs)


def _same_by(rules: Rules) -> Same | None:
    """What tells that there is nothing to do for two regular files of one name."""
    if not rules.times:
        return None
    modes, owners, window_ns = rules.modes, rules.owners, rules.window_ns

    def same(one: os.stat_result, other: Row) -> bool:
        # By index: mode, number of links, owners, size. On one machine names and numbers of owners
        # are the same thing.
        return (
            one[6] == other[4]
            and (one.st_mtime_ns == other[5] or abs(one.st_mtime_ns - other[5]) <= window_ns)
            and one[3] == other[1] == 1
            and (one[0] == other[0] or (not modes and stat.S_ISREG(other[0])))
            and (not owners or one[4:6] == other[2:4])
        )

    return same


class Bulk:
    """Lists both sides of directories of two local trees."""

    visits_max = VISITS_MAX

    def __init__(
        self, source: LocalTree, destination: LocalTree, same: Same | None, *, xattrs: bool
    ) -> None:
        """`same` None: everything is told. `xattrs`: files that have any are told, too."""
        self._source = source
        self._destination = destination
        self._same = same
        self._xattrs = xattrs
        self._twin: Twin | None = None
        self._twin_allowed = same is not None

    async def look(self, visits: Sequence[Wanted]) -> Sequence[Both | None]:
        """What each has; None: too much for memory."""
        found: list[Both | None] = []
        while len(found) < len(visits):
            found += await self._source.wait(self._some, visits[len(found) :])
        return found

    async def close(self) -> None:
        """End the twin."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._end_twin)

    def _end_twin(self) -> None:
        self._twin_allowed = False
        twin, self._twin = self._twin, None
        if twin is not None:
            twin.close()

    @contextlib.contextmanager
    def _lend_twin(self, visits: Sequence[Wanted]) -> Iterator[Twin | None]:
        """The twin, where there is enough to do for two and nobody else has it."""
        if self._twin is None and self._twin_allowed and len(visits) >= _TWIN_VISITS_MIN:
            self._twin_allowed = False  # one attempt
            with contextlib.suppress(OSError):
                self._twin = Twin(NODES_MAX, xattrs=self._xattrs)
        twin = self._twin
        if twin is None or not twin.lock.acquire(blocking=False):
            yield None
            return
        try:
            yield twin
        finally:
            twin.lock.release()

    def _some(self, visits: Sequence[Wanted]) -> list[Both | None]:
        found: list[Both | None] = []
        looked_at = 0
        with (
            contextlib.closing(Directories(self._source.root)) as sources,
            contextlib.closing(Directories(self._destination.root)) as targets,
            self._lend_twin(visits) as twin,
        ):
            asked = _Asked(twin)
            try:
                for visit in visits:
                    self._ask_twin(visit, targets, asked)
                for visit in visits:
                    both, count = self._one(visit, sources, targets, asked)
                    found.append(both)
                    looked_at += count
                    if looked_at >= _CALL_ENTRIES_MAX:
                        break
                asked.skip_rest()
            except BaseException:
                # Answers that nobody has taken would be taken for others.
                if twin is not None:
                    self._twin = None
                    twin.close()
                raise
            if asked.failed and twin is not None and self._twin is twin:
                self._twin = None
                twin.close()
        return found

    def _ask_twin(self, visit: Wanted, targets: Directories, asked: _Asked) -> None:
        """Let the twin look at the destination's side of a directory, if that is of use."""
        if (
            asked.twin is None
            or self._same is None
            or not (visit.in_source and visit.in_destination and visit.filters.trivial)
        ):
            return
        path = visit.directory.path
        # What cannot be opened is told of when its turn comes.
        with (
            contextlib.suppress(RemoteError),
            system_errors(self._destination.root.path(path)),
        ):
            handle = targets.at(path)
            self._destination.scanner.check(handle)
            os.lseek(handle, 0, os.SEEK_SET)
            asked.ask(path, handle)

    def _one(
        self, visit: Wanted, sources: Directories, targets: Directories, asked: _Asked
    ) -> tuple[Both | None, int]:
        both = Both()
        ours: Found | None = {}
        theirs: Found | Looked | None = {}
        source = target = -1
        path, source_path = visit.directory.path, visit.directory.source_path
        told, dressed = asked.answer(path) or (None, None)
        if visit.in_source:
            try:
                with system_errors(self._source.root.path(source_path)):
                    source = sources.at(source_path)
                    ours = _names(self._source.scanner, source)
            except RemoteError as error:
                both.source_error = error
        if visit.in_destination:
            try:
                with system_errors(self._destination.root.path(path)):
                    target = targets.at(path)
                    theirs = _names(self._destination.scanner, target) if told is None else told
            except RemoteError as error:
                both.target_error = error
        if ours is None or theirs is None:
            return None, NODES_MAX
        looked_at = len(ours) + len(theirs) + 1
        if both.source_error is not None or both.target_error is not None:
            return both, looked_at
        if self._same is not None and ours and theirs and self._may_count(visit, ours):
            self._drop_equal(both, self._same, ours, theirs, source, target, dressed)
        try:
            with system_errors(self._source.root.path(source_path)):
                both.sources = list(_nodes(self._source.scanner, source, ours))
        except RemoteError as error:
            both.source_error = error
        try:
            with system_errors(self._destination.root.path(path)):
                both.targets = list(_nodes(self._destination.scanner, target, theirs))
        except RemoteError as error:
            both.target_error = error
        return both, looked_at

    @staticmethod
    def _may_count(visit: Wanted, ours: Found) -> bool:
        """Whether no filter wants to see every name."""
        filters = visit.filters
        return filters.trivial and not any(
            os.fsdecode(name) in ours for name in filters.ignore_names
        )

    def _drop_equal(
        self,
        both: Both,
        same: Same,
        ours: Found,
        theirs: Found | Looked,
        source: int,
        target: int,
        told: Dressed | None,
    ) -> None:
        """Count what is equal, and take it out of both."""
        get, xattrs = theirs.get, self._xattrs
        dressed = None if told is None else frozenset(told)
        equal = []
        sum_bytes = 0
        for name, entry in ours.items():
            there = get(name)
            if there is None:
                continue
            try:
                one = entry.stat(follow_symlinks=False)
                if one[0] & _FORMAT != _REGULAR:
                    continue
                if not isinstance(there, tuple):
                    there = _row(there.stat(follow_symlinks=False))
                if (one[3] != 1 or _row(one) != there) and not same(one, there):
                    continue
            except OSError:  # told of below, if it is one then
                continue
            if xattrs and (
                (_has_xattrs(target, name) if dressed is None else name in dressed)
                or _has_xattrs(source, name)
            ):
                continue
            equal.append(name)
            sum_bytes += one[6]
        for name in equal:
            del ours[name], theirs[name]
        both.equal, both.equal_bytes = len(equal), sum_bytes


def _row(found: os.stat_result) -> Row:
    """As the twin tells it."""
    return found[0], found[3], found[4], found[5], found[6], found.st_mtime_ns


class _Asked:
    """What the twin was asked for one batch, and answers in that order."""

    def __init__(self, twin: Twin | None) -> None:
        self.twin = twin
        self.failed = False  # the twin is of no use any more
        self._paths: deque[bytes] = deque()

    def ask(self, path: bytes, handle: int) -> None:
        """Have an open directory looked at."""
        if self.twin is None or self.failed:
            return
        try:
            self.twin.ask(handle)
            self._paths.append(path)
        except OSError:
            self.failed = True

    def answer(self, path: bytes) -> tuple[Looked, Dressed] | None:
        """What it has; None: it was not asked for, or look for yourself."""
        if self.twin is None or self.failed or not self._paths or self._paths[0] != path:
            return None
        self._paths.popleft()
        try:
            return self.twin.answer()
        except OSError:
            self.failed = True
            return None

    def skip_rest(self) -> None:
        """Take the answers that nobody wants any more."""
        while self._paths and not self.failed:
            self.answer(self._paths[0])


def _has_xattrs(handle: int, name: str) -> bool:
    """Whether a file has extended attributes, or nobody can tell."""
    path = b"/proc/self/fd/%d/%s" % (handle, os.fsencode(name))
    try:
        return bool(os.listxattr(path, follow_symlinks=False))
    except OSError:
        return True


def _names(scanner: Scanner, handle: int) -> Found | None:
    """What is in an open directory; None: too much."""
    scanner.check(handle)
    os.lseek(handle, 0, os.SEEK_SET)
    with os.scandir(handle) as entries:
        found = {entry.name: entry for entry in islice(entries, NODES_MAX + 1)}
    return found if len(found) <= NODES_MAX else None


def _nodes(scanner: Scanner, handle: int, found: Found | Looked) -> Iterator[Node]:
    owners = scanner.owners
    for text, entry in found.items():
        name = os.fsencode(text)
        if text.startswith(_PART_START) and is_part(name):
            scanner.found_parts = True
            continue
        try:
            if isinstance(entry, tuple):
                each = os.lstat(name, dir_fd=handle)
            else:
                each = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # deleted meanwhile
            continue
        target = None
        if stat.S_ISLNK(each.st_mode):
            with contextlib.suppress(OSError):  # no symlink any more: its target is unknown
                target = os.readlink(name, dir_fd=handle)
        yield node_of(name, each, owners, target)
