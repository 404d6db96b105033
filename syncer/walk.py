"""Two trees, side by side: what each has at every path, directory by directory.

`walk` goes through both in order of their paths and hands events to a sink:

    Enter(directory)            both sides of one directory have been listed
      Pair(…), Pair(…), Equal   what is in it, its subdirectories aside
      Enter(subdirectory) … Leave(subdirectory)
    Leave(directory, complete)  everything below it has been seen

Several directories are listed ahead of the one whose turn it is, so that a far server is never
waited for twice. Of two local trees many directories are listed in one go, and what is equal there
is only counted (`walk_local`). What is large goes through a scratch database: memory does not grow
with a directory or a tree.

What cannot be listed is a Problem, and its Leave is not complete: nobody may conclude that a name
is gone which was never looked for. That holds for both sides and for all that lies below.

A directory at the source that the filters, or the options, leave out is not entered; what the
destination has in its place is a Pair that is not kept: it is not to be touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import trio

from syncer.diff import Finding, Rules, step_kind
from syncer.filter_patterns import FilterError
from syncer.filters import Filters
from syncer.options import Options, Symlinks
from syncer.remotes.errors import Missing, OtherFileSystem, RemoteError, Unsupported
from syncer.tree import ROOT, Node, NodeKind, Page, Tree
from syncer.walk_events import (
    Directory,
    Enter,
    Equal,
    Event,
    EventSink,
    Leave,
    Pair,
    Problem,
    Side,
    folded,
    join,
)
from syncer.walk_links import resolve
from syncer.walk_scratch import Names, Queue, Scratch

AHEAD_MAX: Final = 32  # directories that are being listed at a time
AHEAD_MIN: Final = 4
HELD_NODES_MAX: Final = 100_000  # listed before their turn: 50 MB
EVENTS_MAX: Final = 2_000  # handed over at a time
IGNORE_BYTES_MAX: Final = 1 << 20  # of one ignore file

_DIRECTORY: Final = NodeKind.DIRECTORY
_FILE: Final = NodeKind.FILE
_SYMLINK: Final = NodeKind.SYMLINK


def lists_ahead(source: Tree, destination: Tree) -> int:
    """How many directories are worth listing at a time: more where answers take longer."""
    round_trip_s = max(source.features.round_trip_s, destination.features.round_trip_s)
    return max(AHEAD_MIN, min(AHEAD_MAX, round(round_trip_s / 0.0025)))


class Visit:
    """A directory whose turn will come."""

    __slots__ = (
        "chain",
        "destination_error",
        "directory",
        "equal",
        "equal_bytes",
        "filters",
        "listed",
        "real",
        "source_error",
        "sources",
        "targets",
    )

    def __init__(
        self, directory: Directory, filters: Filters, chain: frozenset[bytes] = frozenset()
    ) -> None:
        self.directory = directory
        self.filters = filters
        self.chain = chain  # real paths of those above; where symlinks are followed
        self.listed: trio.Event | None = None  # being listed; set: it has been
        self.sources: Names | None = None
        self.targets: Names | None = None
        self.real: dict[bytes, bytes] = {}  # by name: where a followed symlink leads
        self.source_error: RemoteError | None = None
        self.destination_error: RemoteError | None = None
        self.equal = 0
        self.equal_bytes = 0

    @property
    def in_source(self) -> bool:
        """Whether the source has a directory here."""
        source = self.directory.source
        return source is not None and source.kind is _DIRECTORY

    @property
    def in_destination(self) -> bool:
        """Whether the destination has one."""
        destination = self.directory.destination
        return destination is not None and destination.kind is _DIRECTORY

    def held(self) -> int:
        """Nodes in memory because of it."""
        return sum(
            len(names)
            for names in (self.sources, self.targets)
            if names is not None and names.in_memory is not None
        )


class _Frame:
    """A directory that has been entered, and its subdirectories that wait."""

    __slots__ = ("complete", "visit", "waiting", "window")

    def __init__(self, visit: Visit, waiting: Queue, *, complete: bool) -> None:
        self.visit = visit
        self.waiting = waiting
        self.complete = complete
        self.window: list[Visit] = []  # the first of those that wait, as visits


async def root_of(tree: Tree, *, may_lack: bool) -> Node | None:
    """The node of a tree's root. None, where `may_lack` it: there is none yet.

    Raises what the tree raises: that a disk or server is away is no answer.
    """
    from syncer.local_tree import LocalTree

    try:
        return await tree.stat(ROOT)
    except Missing:
        if may_lack:
            return None
        raise
    except RemoteError:
        # A local folder that is not there may be one to be made, or a disk to be mounted: which
        # of them, guardian has found out before.
        if may_lack and isinstance(tree, LocalTree):
            path = trio.Path(tree.label)
            try:
                await path.lstat()
            except FileNotFoundError:
                return None
            except OSError:
                pass
        raise


async def walk(
    source: Tree,
    destination: Tree,
    options: Options,
    rules: Rules,
    filters: Filters,
    sink: EventSink,
    *,
    quick: bool = True,
) -> None:
    """Tell `sink` what both trees have. `rules.deletes`: also what only the destination has.

    `quick`: files that are equal by size, times and wanted metadata may be counted, not told.
    Raises what the source's root raises, or the destination's other than Missing.
    """
    await _Walk(source, destination, options, rules, filters, sink, quick=quick).run()


class _Walk:
    def __init__(
        self,
        source: Tree,
        destination: Tree,
        options: Options,
        rules: Rules,
        filters: Filters,
        sink: EventSink,
        *,
        quick: bool,
    ) -> None:
        from syncer.walk_local import Bulk, bulk_of

        self._source = source
        self._destination = destination
        self._options = options
        self._rules = rules
        self._filters = filters
        self._sink = sink
        self._scratch = Scratch()
        sensitive = source.features.case_sensitive and destination.features.case_sensitive
        self._fold = None if sensitive else folded
        self._follow = options.symlinks is Symlinks.FOLLOW
        self._hidden = options.trash.strip("/").encode("utf-8", "surrogateescape")
        self._ahead = lists_ahead(source, destination)
        self._limiter = trio.CapacityLimiter(self._ahead)
        self._held = 0
        self._events: list[Event] = []
        self._stack: list[_Frame] = []
        self._bulk: Bulk | None = None
        if not self._follow:
            self._bulk = bulk_of(source, destination, rules, quick=quick)

    async def run(self) -> None:
        source = await root_of(self._source, may_lack=False)
        assert source is not None
        destination = await root_of(self._destination, may_lack=True)
        root = Directory(ROOT, ROOT, source, destination)
        try:
            if source.kind is not _DIRECTORY:
                # A single file, under the empty path.
                self._events.append(Pair(ROOT, ROOT, source, destination))
            else:
                await self._run(Visit(root, self._filters, frozenset({ROOT})))
            await self._hand_over()
        finally:
            self._scratch.close()
            if self._bulk is not None:
                await self._bulk.close()

    async def _run(self, root: Visit) -> None:
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await self._go_through(root)
            except Exception as error:  # noqa: BLE001 - raised below, not in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _go_through(self, root: Visit) -> None:
        await self._enter(root)
        while self._stack:
            frame = self._stack[-1]
            visit = self._next(frame)
            if visit is None:
                self._stack.pop()
                self._events.append(Leave(frame.visit.directory, frame.complete))
            else:
                await self._enter(visit)
            if len(self._events) >= EVENTS_MAX:
                await self._hand_over()

    async def _hand_over(self) -> None:
        if self._events:
            events, self._events = self._events, []
            await self._sink(events)

    # Ahead of the turn.

    def _fill(self, frame: _Frame, count: int) -> list[Visit]:
        """The next `count` subdirectories of a frame as visits, made once each."""
        window = frame.window
        if len(window) < count:
            above = frame.visit
            for directory in frame.waiting.peek(count)[len(window) :]:
                window.append(Visit(directory, above.filters, self._chain(above, directory)))
        return window[:count]

    def _chain(self, above: Visit, directory: Directory) -> frozenset[bytes]:
        return above.chain | {directory.source_path} if self._follow else above.chain

    def _next(self, frame: _Frame) -> Visit | None:
        visits = self._fill(frame, 1)
        if not visits:
            return None
        frame.waiting.pop()
        return frame.window.pop(0)

    def _coming(self, count: int) -> Iterator[Visit]:
        """Those whose turn comes next, as far as they are known."""
        for frame in reversed(self._stack):
            visits = self._fill(frame, count)
            yield from visits
            count -= len(visits)
            if count <= 0:
                return

    async def _list(self, visit: Visit) -> None:
        """Have it listed, and begin to list what comes after it."""
        demanded = visit.listed is None
        if demanded:
            self._begin([visit, *self._to_begin(first=1)])
        elif visit.listed is not None and not visit.listed.is_set():
            self._begin(self._to_begin())
        assert visit.listed is not None
        if not visit.listed.is_set():
            await visit.listed.wait()
        self._held -= visit.held()
        if not demanded:
            self._begin(self._to_begin())

    def _to_begin(self, first: int = 0) -> list[Visit]:
        """What is worth listing now, if what is held allows it."""
        if self._held > HELD_NODES_MAX:
            return []
        if self._bulk is not None:
            count = self._bulk.visits_max
            coming = [each for each in self._coming(count) if each.listed is None]
            # A call to a thread costs as much as forty entries: rather a full one a little later.
            return coming if first or len(coming) > count // 2 else []
        free = self._ahead - self._limiter.borrowed_tokens - first
        return [each for each in self._coming(self._ahead) if each.listed is None][: max(0, free)]

    def _begin(self, visits: list[Visit]) -> None:
        if not visits:
            return
        for visit in visits:
            visit.listed = trio.Event()
        if self._bulk is not None:
            self._nursery.start_soon(self._list_bulk, visits)
        else:
            for visit in visits:
                self._nursery.start_soon(self._list_one, visit)

    async def _list_bulk(self, visits: list[Visit]) -> None:
        assert self._bulk is not None
        for visit, found in zip(visits, await self._bulk.look(visits), strict=True):
            if found is None:  # too large for that
                await self._list_one(visit)
                continue
            visit.source_error, visit.destination_error = found.source_error, found.target_error
            visit.equal, visit.equal_bytes = found.equal, found.equal_bytes
            visit.sources = Names(self._scratch, self._fold)
            visit.sources.add(found.sources)
            visit.targets = Names(self._scratch, self._fold)
            visit.targets.add(found.targets)
            self._done(visit)

    def _done(self, visit: Visit) -> None:
        self._held += visit.held()
        assert visit.listed is not None
        visit.listed.set()

    async def _list_one(self, visit: Visit) -> None:
        async with trio.open_nursery() as nursery:
            if visit.in_source:
                nursery.start_soon(self._list_source, visit)
            if visit.in_destination:
                nursery.start_soon(self._list_destination, visit)
        self._done(visit)

    async def _names(self, tree: Tree, path: bytes) -> Names:
        names = Names(self._scratch, self._fold)

        async def take(page: Page) -> None:
            await trio.lowlevel.checkpoint()
            names.add(page)

        async with self._limiter:
            await tree.list(path, take)
        return names

    async def _list_source(self, visit: Visit) -> None:
        try:
            names = await self._names(self._source, visit.directory.source_path)
            if self._follow:
                names = await self._followed(visit, names)
            visit.sources = names
        except RemoteError as error:
            visit.source_error = error

    async def _list_destination(self, visit: Visit) -> None:
        try:
            visit.targets = await self._names(self._destination, visit.directory.path)
        except RemoteError as error:
            visit.destination_error = error

    # Symlinks that are followed.

    async def _followed(self, visit: Visit, names: Names) -> Names:
        """The same names with what symlinks lead to in their places."""
        found = Names(self._scratch, self._fold)
        for _, group in names.groups():
            for node in group:
                if node.kind is not _SYMLINK:
                    found.add((node,))
                    continue
                try:
                    real, target = await resolve(self._source, visit.directory.source_path, node)
                    if target.kind is _DIRECTORY and real in visit.chain:
                        raise Unsupported(f"{node.name!r} leads back to a directory that it is in")
                except RemoteError as error:
                    path = join(visit.directory.path, node.name)
                    self._events.append(Problem(path, Side.SOURCE, error))
                    found.add((node,))  # still a symlink: left out below
                else:
                    visit.real[node.name] = real
                    found.add((target._replace(name=node.name, link=None),))
        names.clear()
        return found

    # The turn.

    async def _enter(self, visit: Visit) -> None:
        await self._list(visit)
        directory = visit.directory
        if isinstance(visit.destination_error, Missing):
            # It went while we walked: that makes it no error, and nothing that could be deleted.
            visit.destination_error = None
            directory = visit.directory = directory._replace(destination=None)
        self._tell_errors(visit)
        self._events.append(Enter(directory))
        waiting = Queue(self._scratch)
        complete = visit.source_error is None and visit.destination_error is None
        if complete and visit.in_source:
            complete = await self._read_ignore_files(visit)
        if complete:
            if visit.equal:
                self._events.append(Equal(visit.equal, visit.equal_bytes))
            for events in _batches(self._pairs(visit, waiting)):
                self._events += events
                if len(self._events) >= EVENTS_MAX:
                    await self._hand_over()
        for names in (visit.sources, visit.targets):
            if names is not None:
                names.clear()
        self._stack.append(_Frame(visit, waiting, complete=complete))

    def _tell_errors(self, visit: Visit) -> None:
        path = visit.directory.path
        for side, error in (
            (Side.SOURCE, visit.source_error),
            (Side.DESTINATION, visit.destination_error),
        ):
            if error is None:
                continue
            if path == ROOT:
                raise error
            # Another file system is left out as was asked for: no problem, and nothing is deleted
            # below what is not known.
            if not isinstance(error, OtherFileSystem):
                self._events.append(Problem(path, side, error))

    async def _read_ignore_files(self, visit: Visit) -> bool:
        """Let the filters know of the directory's ignore files; False: they cannot be read."""
        names = visit.sources
        wanted = visit.filters.ignore_names
        if names is None or not wanted:
            return True
        nodes: Sequence[Node]
        if names.in_memory is not None:
            nodes = [each for each in names.in_memory if each.name in wanted]
        else:
            nodes = [each for _, group in names.groups() for each in group if each.name in wanted]
        directory = visit.directory
        contents: dict[bytes, bytes] = {}
        try:
            for node in nodes:
                if node.kind is not _FILE:
                    continue
                if node.size > IGNORE_BYTES_MAX:
                    raise Unsupported(f"{node.name!r} has {node.size} bytes: too many for rules")
                path = join(directory.source_path, node.name)
                if not node.exact:
                    node = await self._source.stat(path)  # noqa: PLW2901 - the same, better known
                contents[node.name] = await self._source.read(path, node, 0, node.size)
            if contents:
                visit.filters = visit.filters.enter(directory.path, contents)
        except FilterError as error:
            self._events.append(Problem(directory.path, Side.SOURCE, Unsupported(str(error))))
            return False
        except RemoteError as error:
            self._events.append(Problem(directory.path, Side.SOURCE, error))
            return False
        return True

    def _pairs(self, visit: Visit, waiting: Queue) -> Iterator[Event]:
        """What is in a directory; what is to be entered goes into the queue."""
        path, source_path = visit.directory.path, visit.directory.source_path
        hidden = self._hidden
        for source, destination in self._merged(visit):
            node = source if source is not None else destination
            assert node is not None
            name = node.name
            here = path + b"/" + name if path else name
            if hidden and here == hidden:  # the trash is no part of the tree
                if source is not None:
                    error = Unsupported("this is the trash's name at the destination")
                    self._events.append(Problem(here, Side.SOURCE, error))
                yield Pair(here, here, source, destination, kept=False)
                continue
            there = join(source_path, name) if source_path != path else here
            if visit.real and name in visit.real:
                there = visit.real[name]
            if not self._keeps(visit, here, source, destination):
                yield Pair(here, there, source, destination, kept=False)
            elif self._enters(source, destination):
                waiting.add(Directory(here, there, source, destination))
            else:
                yield Pair(here, there, source, destination)

    def _keeps(
        self, visit: Visit, path: bytes, source: Node | None, destination: Node | None
    ) -> bool:
        node = source if source is not None else destination
        assert node is not None
        if source is not None:
            kind = source.kind
            if kind is _SYMLINK:
                if self._options.symlinks is not Symlinks.KEEP:
                    return False
            elif kind is _DIRECTORY:
                if not self._options.recursive:
                    return False
            elif kind is not _FILE and not self._options.specials:
                return False
        return visit.filters.trivial or visit.filters.decide(path, node).keep

    def _enters(self, source: Node | None, destination: Node | None) -> bool:
        if source is not None and source.kind is _DIRECTORY:
            return (
                destination is None
                or destination.kind is _DIRECTORY
                or not self._rules.keeps_existing
            )
        return (
            destination is not None
            and destination.kind is _DIRECTORY
            and self._rules.deletes
            and (source is None or self._gives_way(source))
        )

    def _gives_way(self, source: Node) -> bool:
        """Whether a directory at the destination may be deleted for what the source has there."""
        if self._rules.keeps_existing:
            return False
        return not isinstance(step_kind(self._rules, source), Finding)

    def _merged(self, visit: Visit) -> Iterator[tuple[Node | None, Node | None]]:
        """Both sides' nodes by name, in order."""
        empty = Names(self._scratch, self._fold)
        ours = (visit.sources or empty).groups()
        theirs = (visit.targets or empty).groups()
        one, other = next(ours, None), next(theirs, None)
        while one is not None or other is not None:
            if other is None or (one is not None and one[0] < other[0]):
                assert one is not None
                yield self._single(visit, one[1], Side.SOURCE), None
                one = next(ours, None)
            elif one is None or other[0] < one[0]:
                yield None, self._single(visit, other[1], Side.DESTINATION)
                other = next(theirs, None)
            else:
                node = self._single(visit, one[1], Side.SOURCE)
                yield node, self._single(visit, other[1], Side.DESTINATION, node.name)
                one, other = next(ours, None), next(theirs, None)

    def _single(self, visit: Visit, group: list[Node], side: Side, like: bytes = b"") -> Node:
        """The one of several nodes of one name that counts. The others are told of."""
        if len(group) == 1:
            return group[0]
        chosen = next((each for each in group if each.name == like), group[0])
        for node in group:
            if node is not chosen:
                error = Unsupported(f"{node.name!r} and {chosen.name!r} are the same name there")
                self._events.append(Problem(join(visit.directory.path, node.name), side, error))
        return chosen


def _batches(events: Iterator[Event]) -> Iterator[list[Event]]:
    batch: list[Event] = []
    for event in events:
        batch.append(event)
        if len(batch) >= EVENTS_MAX:
            yield batch
            batch = []
    if batch:
        yield batch
