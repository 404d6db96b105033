"""What a walk cannot hold in memory: large directories in order of their names, and many links.

Both begin in memory and move to a private temporary database, which SQLite removes by itself, when
they have grown beyond a limit. Blocks for milliseconds at most; for one thread.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from syncer.tree import Node, NodeKind

if TYPE_CHECKING:
    import apsw

NODES_MAX: Final = 20_000  # of one directory in memory: 10 MB
LINKS_MAX: Final = 100_000  # likewise, of a whole walk: 30 MB
_ROWS: Final = 2_000  # read at a time
_KINDS: Final = tuple(NodeKind)
_CODES: Final = {kind: code for code, kind in enumerate(_KINDS)}

Fold = Callable[[bytes], bytes]


def _pack(node: Node) -> bytes:
    # Only ever read back by this process, from a file that nobody else can open.
    return pickle.dumps((node[0], _CODES[node.kind], *node[2:]), 5)


def _unpack(data: bytes) -> Node:
    name, code, *rest = pickle.loads(data)  # noqa: S301 - see _pack
    return Node(name, _KINDS[code], *rest)


def _key(link: Hashable) -> bytes:
    # Links are made of plain values. Not pickled: equal ones may come out different.
    return repr(link).encode("utf-8", "surrogateescape")


class Scratch:
    """The temporary database of one walk, made when it is first needed. Close it."""

    def __init__(self) -> None:
        self._connection: apsw.Connection | None = None
        self._tables = 0

    @property
    def connection(self) -> apsw.Connection:
        """The database."""
        if self._connection is None:
            import apsw

            connection = apsw.Connection("")  # a file without a name
            connection.pragma("journal_mode", "off")
            connection.pragma("synchronous", 0)
            connection.pragma("cache_size", -8192)
            self._connection = connection
        return self._connection

    def table(self, columns: str) -> str:
        """Make a new table and return its name."""
        self._tables += 1
        name = f"t{self._tables}"
        self.connection.execute(f"CREATE TABLE {name}({columns}) WITHOUT ROWID")
        return name

    def drop(self, table: str) -> None:
        """Remove a table."""
        self.connection.execute(f"DROP TABLE {table}")

    def close(self) -> None:
        """Remove everything."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Names:
    """The nodes of one directory, to be read in order of `fold(name)`."""

    def __init__(self, scratch: Scratch, fold: Fold | None, nodes_max: int = NODES_MAX) -> None:
        """`fold` None: names are what they are."""
        self._scratch = scratch
        self._fold = fold
        self._nodes_max = nodes_max
        self._nodes: list[Node] = []
        self._table = ""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def in_memory(self) -> list[Node] | None:
        """All of them, in no order; None: they are too many."""
        return None if self._table else self._nodes

    def add(self, nodes: Iterable[Node]) -> None:
        """Take some more."""
        self._nodes.extend(nodes)
        if not self._table:
            self._count = len(self._nodes)
            if self._count > self._nodes_max:
                self._table = self._scratch.table(
                    "key BLOB, number INT, node BLOB, PRIMARY KEY(key, number)"
                )
                self._count = 0
        if self._table and self._nodes:
            self._store()

    def _store(self) -> None:
        fold = self._fold
        connection = self._scratch.connection
        rows = [
            (node.name if fold is None else fold(node.name), self._count + index, _pack(node))
            for index, node in enumerate(self._nodes)
        ]
        rows.sort()
        with connection:
            connection.executemany(f"INSERT INTO {self._table} VALUES(?, ?, ?)", rows)
        self._count += len(rows)
        self._nodes = []

    def groups(self) -> Iterator[tuple[bytes, list[Node]]]:
        """Each folded name with those that have it, in order; nearly always one."""
        group: list[Node] = []
        group_key: bytes | None = None
        for key, node in self._sorted():
            if key != group_key:
                if group_key is not None:
                    yield group_key, group
                group, group_key = [], key
            group.append(node)
        if group_key is not None:
            yield group_key, group

    def _sorted(self) -> Iterator[tuple[bytes, Node]]:
        if not self._table:
            fold = self._fold
            keyed = [
                (node.name if fold is None else fold(node.name), index, node)
                for index, node in enumerate(self._nodes)
            ]
            keyed.sort()
            for key, _, node in keyed:
                yield key, node
            return
        after: tuple[Any, ...] = (b"", -1)
        query = (
            f"SELECT key, number, node FROM {self._table} WHERE (key, number) > (?, ?) "  # noqa: S608
            f"ORDER BY key, number LIMIT {_ROWS}"
        )
        # Read in pieces: an open statement would keep the table from being dropped.
        while rows := self._page(query, after):
            for key, _, data in rows:
                yield key, _unpack(data)
            after = rows[-1][:2]

    def _page(self, query: str, after: tuple[Any, ...]) -> list[Any]:
        return self._scratch.connection.execute(query, after).fetchall()

    def clear(self) -> None:
        """Forget all."""
        self._nodes = []
        self._count = 0
        if self._table:
            self._scratch.drop(self._table)
            self._table = ""


class Queue:
    """Values that come out in the order in which they went in, once."""

    def __init__(self, scratch: Scratch, values_max: int = NODES_MAX) -> None:
        self._scratch = scratch
        self._values_max = values_max
        self._head: list[Any] = []
        self._next = 0  # of the head
        self._table = ""
        self._stored = self._taken = 0

    def add(self, value: Any) -> None:
        """Append; nodes are kept whole."""
        if not self._table and len(self._head) - self._next < self._values_max:
            self._head.append(value)
            return
        if not self._table:
            self._table = self._scratch.table("number INTEGER PRIMARY KEY, value BLOB")
        self._scratch.connection.execute(
            f"INSERT INTO {self._table} VALUES(?, ?)",
            (self._stored, pickle.dumps(value, 5)),
        )
        self._stored += 1

    def peek(self, count: int) -> list[Any]:
        """Up to `count` of the next ones, at most a thousand or so, which stay."""
        if len(self._head) - self._next < count and self._taken < self._stored:
            rows: list[Any] = self._scratch.connection.execute(
                f"SELECT value FROM {self._table} WHERE number >= ? ORDER BY number LIMIT ?",  # noqa: S608
                (self._taken, _ROWS),
            ).fetchall()
            self._head = self._head[self._next :]
            self._next = 0
            self._head += [pickle.loads(data) for (data,) in rows]  # noqa: S301 - see _pack
            self._taken += len(rows)
            if self._taken == self._stored:
                self._scratch.drop(self._table)
                self._table = ""
                self._stored = self._taken = 0
        return self._head[self._next : self._next + count]

    def pop(self) -> Any:
        """Take the next one; None: there is none."""
        if not self.peek(1):
            return None
        value = self._head[self._next]
        self._head[self._next] = None
        self._next += 1
        return value


class Links:
    """What is remembered of the files that have several names."""

    def __init__(self, scratch: Scratch, links_max: int = LINKS_MAX) -> None:
        self._scratch = scratch
        self._links_max = links_max
        self._links: dict[Hashable, Any] = {}
        self._table = ""

    def get(self, link: Hashable) -> Any:
        """What was said of a link; None: nothing."""
        found = self._links.get(link)
        if found is None and self._table:
            for (data,) in self._scratch.connection.execute(
                f"SELECT value FROM {self._table} WHERE link = ?",  # noqa: S608
                (_key(link),),
            ):
                return pickle.loads(data)  # noqa: S301 - see _pack
        return found

    def set(self, link: Hashable, value: Any) -> None:
        """Remember `value`, which is not None and is never changed later."""
        self._links[link] = value
        if len(self._links) >= self._links_max:
            if not self._table:
                self._table = self._scratch.table("link BLOB PRIMARY KEY, value BLOB")
            rows = [(_key(each), pickle.dumps(said, 5)) for each, said in self._links.items()]
            with self._scratch.connection as connection:
                connection.executemany(
                    f"INSERT OR REPLACE INTO {self._table} VALUES(?, ?)",
                    rows,
                )
            self._links.clear()
