"""Walks over all that snapshots name: for checks, and for collections. Blocks: for threads.

Each object is looked at once, however many snapshots share it. What was seen is noted in a scratch
database, so that memory stays flat.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import apsw

from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError
from blockstore.ids import ChunkId
from syncer.chunks import ChunkStore
from syncer.recipes import Index as RecipeIndex
from syncer.recipes import Recipe, decode_recipe
from syncer.remotes.errors import RemoteError
from syncer.snapshot_reader import SnapshotReader
from syncer.tree import NodeKind
from syncer.tree_objects import (
    Entry,
    Leaf,
    decode_directory,
    decode_root,
    decode_tokens,
)

_BATCH: Final = 1_024  # ids
_OBJECTS_AT_ONCE: Final = 64  # fetched together: of 20 KiB on average, 1 MiB at most
_READ_AT_ONCE: Final = 64  # chunks of content
_PROBLEMS_MAX: Final = 10_000
_ROOT, _DIRECTORY, _RECIPE, _TOKENS = range(4)


class _Seen:
    """Ids that were met, on the disk."""

    def __init__(self) -> None:
        # Its name is empty: a file that SQLite makes and removes by itself.
        self._scratch = apsw.Connection("")
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
            self._scratch.execute(f"PRAGMA {pragma}").fetchall()
        self._scratch.execute("CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID").fetchall()
        self._scratch.execute("BEGIN").fetchall()

    def new(self, name: bytes) -> bool:
        """Note an id; tell whether it is new."""
        self._scratch.execute("INSERT OR IGNORE INTO seen VALUES (?)", (name,)).fetchall()
        return self._scratch.changes() > 0

    def has(self, name: bytes) -> bool:
        """Tell whether an id was met."""
        found = self._scratch.execute("SELECT 1 FROM seen WHERE id = ?", (name,)).fetchone()
        return found is not None

    def close(self) -> None:
        """Forget all."""
        self._scratch.close()


class ObjectWalk:
    """Visits the objects below roots, each once, some at a time. Close it."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._seen = _Seen()
        self._todo: list[tuple[int, ChunkId]] = []
        self.on_problem: Callable[[ChunkId, OrbitError], None] | None = None

    def chunks(self, roots: Iterable[tuple[ChunkId, ChunkId | None]]) -> Iterator[list[ChunkId]]:
        """Yield the ids of all chunks, those of objects included, in batches; content may repeat.

        An object is passed on before what it names. Raises what the store and the decoders raise,
        unless `on_problem` is set.
        """
        for root, tokens in roots:
            self._add(_ROOT, root)
            if tokens is not None:
                self._add(_TOKENS, tokens)
            yield from self._run()

    def reached(self, ids: Iterable[bytes]) -> set[bytes]:
        """Return those that were met as directories: all that lies below them was met, too."""
        return {name for name in ids if self._seen.has(bytes([_DIRECTORY]) + name)}

    def close(self) -> None:
        """Forget what was met."""
        self._seen.close()

    def _add(self, kind: int, name: ChunkId) -> None:
        # The kind is part of what was seen: a chunk could be a file's content and an object.
        if self._seen.new(bytes([kind]) + name):
            self._todo.append((kind, name))

    def _run(self) -> Iterator[list[ChunkId]]:
        batch: list[ChunkId] = []
        while self._todo:
            some = self._todo[-_OBJECTS_AT_ONCE:]
            del self._todo[-_OBJECTS_AT_ONCE:]
            batch += [name for _, name in some]
            for kind, name, data in self._fetch(some):
                try:
                    batch += self._look(kind, data)
                except OrbitError as error:
                    self._problem(name, error)
                if len(batch) >= _BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _problem(self, name: ChunkId, error: OrbitError) -> None:
        if self.on_problem is None:
            raise error
        self.on_problem(name, error)

    def _fetch(self, some: Sequence[tuple[int, ChunkId]]) -> Iterator[tuple[int, ChunkId, bytes]]:
        try:
            data = self._store.fetch([name for _, name in some])
        except (ChunkMissing, ChunkDamaged):
            data = {}
        for kind, name in some:
            try:
                found = data[name] if name in data else self._store.fetch([name])[name]
            except OrbitError as error:
                self._problem(name, error)
                continue
            yield kind, name, found

    def _look(self, kind: int, data: bytes) -> list[ChunkId]:
        """Decode an object; note the objects it names, return the ids of content it names."""
        if kind == _ROOT:
            return self._entries([decode_root(data)])
        if kind == _DIRECTORY:
            found = decode_directory(data)
            if isinstance(found, Leaf):
                return self._entries(found.entries)
            for child in found.children:
                self._add(_DIRECTORY, child.id)
            return []
        if kind == _RECIPE:
            part = decode_recipe(data)
            if not isinstance(part, RecipeIndex):
                return [extent.id for extent in part.extents]
            for piece in part.children:
                self._add(_RECIPE, piece.id)
            return []
        tokens = decode_tokens(data)
        for name in tokens.children:
            if name is not None:
                self._add(_TOKENS, name)
        return []

    def _entries(self, entries: Iterable[Entry]) -> list[ChunkId]:
        content: list[ChunkId] = []
        for entry in entries:
            if entry.child is not None:
                self._add(_DIRECTORY, entry.child)
            if entry.recipe is not None:
                content += self._recipe(entry.recipe)
            if entry.xattr_recipe is not None:
                content += self._recipe(entry.xattr_recipe[0])
        return content

    def _recipe(self, recipe: Recipe) -> list[ChunkId]:
        if recipe.root is not None:
            self._add(_RECIPE, recipe.root)
        return [extent.id for extent in recipe.extents]


def live_chunks(
    store: ChunkStore, roots: Iterable[tuple[ChunkId, ChunkId | None]]
) -> Iterator[Sequence[ChunkId]]:
    """Yield batches of the ids of all chunks that snapshots need, for `BlockStore.collect`.

    `roots`: (root, token object) of each snapshot. Ids may repeat. Raises OrbitError when anything
    cannot be read: a collection must not go on with a part.
    """
    with contextlib.closing(ObjectWalk(store)) as walk:
        yield from walk.chunks(roots)


@dataclass(slots=True)
class CheckReport:
    """What a check found."""

    chunks: int = 0  # looked for; shared ones count once for each object that names them
    chunks_read: int = 0
    problems: dict[ChunkId, str] = field(default_factory=dict)  # what is wrong with which chunk
    more: bool = False  # there are others, which found no room here

    @property
    def ok(self) -> bool:
        """Whether all is there."""
        return not self.problems


def snapshot_check(
    store: ChunkStore,
    roots: Iterable[tuple[ChunkId, ChunkId | None]],
    *,
    data: bool = False,
    progress: Callable[[CheckReport], None] | None = None,
) -> CheckReport:
    """Look whether everything that snapshots name is there; with `data` read all of it.

    Objects are read and decoded in any case. Goes on after problems; what lies below a damaged
    object is not looked at. Raises StorageFailed.
    """
    report = CheckReport()

    def problem(name: ChunkId, error: OrbitError) -> None:
        if len(report.problems) < _PROBLEMS_MAX:
            report.problems.setdefault(name, str(error))
        else:
            report.more = report.more or name not in report.problems

    walk = ObjectWalk(store)
    walk.on_problem = problem
    read = _Seen()
    with contextlib.closing(walk), contextlib.closing(read):
        for batch in walk.chunks(roots):
            report.chunks += len(batch)
            wanted = [name for name in batch if read.new(name)]
            present = store.contains(wanted)
            for name in wanted:
                if name not in present:
                    problem(name, ChunkMissing(name))
            if data:
                there = [name for name in wanted if name in present]
                for start in range(0, len(there), _READ_AT_ONCE):
                    _read(store, there[start : start + _READ_AT_ONCE], report, problem)
            if progress is not None:
                progress(report)
    return report


def _read(
    store: ChunkStore,
    names: Sequence[ChunkId],
    report: CheckReport,
    problem: Callable[[ChunkId, OrbitError], None],
) -> None:
    report.chunks_read += len(names)
    try:
        store.fetch(names)
    except (ChunkMissing, ChunkDamaged):
        for name in names:
            try:
                store.fetch([name])
            except (ChunkMissing, ChunkDamaged) as error:
                problem(name, error)


def damaged_paths(
    store: ChunkStore, root: ChunkId, lost: Collection[ChunkId]
) -> Iterator[tuple[bytes, str]]:
    """Yield the nodes of a snapshot that need one of the lost chunks, and what is wrong.

    For what `snapshot_check` has found; reads the whole tree, but no content.
    """
    reader = SnapshotReader(store, root)
    try:
        todo = [(b"", reader.top)]
    except RemoteError as error:
        yield b"", str(error)
        return
    while todo:
        path, entry = todo.pop()
        try:
            if entry.kind is NodeKind.DIRECTORY:
                prefix = path + b"/" if path else b""
                for page in reader.pages(entry):
                    todo += [(prefix + each.name, each) for each in page]
            elif entry.kind is NodeKind.FILE and any(
                extent.id in lost for batch in reader.extents(entry) for extent in batch
            ):
                yield path, "some of its content is lost"
            if entry.xattr_recipe is not None:
                reader.xattrs(entry)
        except RemoteError as error:
            yield path, str(error)
