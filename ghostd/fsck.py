"""The namespace's invariants as named checks, over one snapshot of the database.

Each check is one SQL statement, or one scan, that finds what contradicts the promise; memory stays
flat. Paths of damaged files are only looked for when there are any.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import apsw

from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.filemap import SEGMENT_BYTES, chunk_ids, decode_segment
from ghostd.inodes import ROOT_INO

CHUNKS_STORED = "chunks-are-stored"
PROBLEMS_MAX = 100  # per check; enough to see what is wrong


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    name: str
    promise: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _SqlCheck:
    """A promise, the query whose rows break it, and how such a row reads."""

    name: str
    promise: str
    query: str
    text: str


# In the queries 16384 and 32768 are S_IFDIR and S_IFREG, 61440 is S_IFMT, inode 1 is the root.
_SQL_CHECKS = (
    _SqlCheck(
        "names-lead-somewhere",
        "every name leads to an inode",
        """SELECT d.parent, d.name, d.ino FROM dirents d LEFT JOIN inodes i USING(ino)
           WHERE i.ino IS NULL""",
        "directory {0}: {1!r} leads to inode {2}, which does not exist",
    ),
    _SqlCheck(
        "names-lie-in-directories",
        "every name lies in a directory",
        """SELECT d.parent, d.name FROM dirents d LEFT JOIN inodes i ON i.ino = d.parent
           WHERE i.ino IS NULL OR (i.mode & 61440) <> 16384""",
        "{1!r} lies in {0}, which is no directory",
    ),
    _SqlCheck(
        "links-are-counted",
        "a file has as many links as names; of a projected snapshot some may not be known yet",
        """SELECT i.ino, i.nlink, count(d.ino) FROM inodes i LEFT JOIN dirents d USING(ino)
           WHERE (i.mode & 61440) <> 16384 GROUP BY i.ino HAVING i.nlink <> count(d.ino)
           AND NOT (i.nlink > count(d.ino) AND i.ino IN (SELECT ino FROM snapshot_links))""",
        "inode {0} has {1} links and {2} names",
    ),
    _SqlCheck(
        "directories-have-one-name",
        "a directory in use has one name, in the directory it calls its parent",
        """SELECT i.ino, count(d.ino), min(d.parent), i.parent
           FROM inodes i LEFT JOIN dirents d USING(ino)
           WHERE (i.mode & 61440) = 16384 AND i.ino <> 1 AND i.nlink > 0
           AND i.ino NOT IN (SELECT id FROM projections WHERE removing = 1) GROUP BY i.ino
           HAVING count(d.ino) <> 1 OR min(d.parent) <> i.parent""",
        "directory {0} has {1} names, in {2}, and calls {3} its parent",
    ),
    _SqlCheck(
        "entries-are-counted",
        "a directory knows how many entries it has",
        """SELECT i.ino, i.children, count(d.ino)
           FROM inodes i LEFT JOIN dirents d ON d.parent = i.ino
           WHERE (i.mode & 61440) = 16384 GROUP BY i.ino HAVING i.children <> count(d.ino)""",
        "directory {0} counts {1} entries and has {2}",
    ),
    _SqlCheck(
        "subdirectories-are-counted",
        "a directory in use has two links and one for each subdirectory",
        """SELECT i.ino, i.nlink, count(s.ino) FROM inodes i LEFT JOIN
           (SELECT d.parent, c.ino FROM dirents d JOIN inodes c USING(ino)
            WHERE (c.mode & 61440) = 16384) s ON s.parent = i.ino
           WHERE (i.mode & 61440) = 16384 AND i.nlink > 0
           GROUP BY i.ino HAVING i.nlink <> 2 + count(s.ino)""",
        "directory {0} has {1} links and {2} subdirectories",
    ),
    _SqlCheck(
        "numbers-are-below-the-counters",
        "no inode number or cookie is beyond the counter that gives them out",
        """SELECT 'inode', max(ino) FROM inodes
           HAVING max(ino) >= (SELECT value FROM meta WHERE key = 'next_ino')
           UNION ALL SELECT 'cookie', max(cookie) FROM dirents
           HAVING max(cookie) >= (SELECT value FROM meta WHERE key = 'next_cookie')""",
        "{0} {1} is beyond its counter",
    ),
    _SqlCheck(
        "inodes-are-counted",
        "the number of inodes is known",
        """SELECT value, n FROM meta, (SELECT count(*) n FROM inodes)
           WHERE key = 'inodes' AND value <> n""",
        "{0} counted, {1} there",
    ),
    _SqlCheck(
        "segments-have-files",
        "only files have content",
        """SELECT DISTINCT s.ino FROM segments s LEFT JOIN inodes i USING(ino)
           WHERE i.ino IS NULL OR (i.mode & 61440) <> 32768""",
        "inode {0} has content and is no file",
    ),
    _SqlCheck(
        "allocation-is-counted",
        "a file knows how many of its bytes are not holes",
        """SELECT i.ino, i.allocated, coalesce(sum(s.bytes), 0)
           FROM inodes i LEFT JOIN segments s USING(ino) WHERE (i.mode & 61440) = 32768
           GROUP BY i.ino HAVING i.allocated <> coalesce(sum(s.bytes), 0)""",
        "inode {0} counts {1} bytes and has {2}",
    ),
    _SqlCheck(
        "attributes-have-inodes",
        "extended attributes belong to inodes that know of them",
        """SELECT x.ino, x.name FROM xattrs x LEFT JOIN inodes i USING(ino)
           WHERE i.ino IS NULL OR i.flags & 1 = 0""",
        "attribute {1!r} of inode {0}",
    ),
    _SqlCheck(
        "bases-have-versions",
        "what a projected file shows of its remote is known",
        """SELECT i.ino, i.base FROM inodes i LEFT JOIN versions v ON v.id = i.base
           WHERE i.base <> 0 AND v.id IS NULL""",
        "inode {0} shows version {1}, of which nothing is known",
    ),
    _SqlCheck(
        "remote-rows-have-inodes",
        "what is known of remote trees belongs to inodes of projections",
        """SELECT 'directory', r.ino FROM remote_dirs r LEFT JOIN inodes i USING(ino)
           WHERE i.ino IS NULL OR i.projection = 0
           UNION ALL SELECT 'version', v.id FROM versions v LEFT JOIN inodes i ON i.ino = v.id
           WHERE i.ino IS NULL
           UNION ALL SELECT 'blocks', b.version FROM blocks b LEFT JOIN versions v
           ON v.id = b.version WHERE v.id IS NULL
           UNION ALL SELECT 'link', l.ino FROM snapshot_links l LEFT JOIN inodes i USING(ino)
           WHERE i.ino IS NULL
           UNION ALL SELECT 'hidden names', h.parent FROM hidden h LEFT JOIN inodes i
           ON i.ino = h.parent WHERE i.ino IS NULL
           UNION ALL SELECT 'what is gone', g.projection FROM gone g LEFT JOIN inodes i
           ON i.ino = g.projection WHERE i.ino IS NULL""",
        "{0} of {1}, which is gone",
    ),
    _SqlCheck(
        "directories-are-reachable",
        "every directory in use leads up to the root",
        """WITH RECURSIVE below(ino) AS (VALUES(1) UNION
           SELECT id FROM projections WHERE removing = 1 UNION
           SELECT i.ino FROM below b JOIN dirents d ON d.parent = b.ino
           JOIN inodes i ON i.ino = d.ino WHERE (i.mode & 61440) = 16384)
           SELECT ino FROM inodes WHERE (mode & 61440) = 16384 AND nlink > 0
           AND ino NOT IN (SELECT ino FROM below)""",
        "directory {0} is not below the root",
    ),
)


def check_tree(connection: apsw.Connection) -> list[Finding]:
    """Names, links, counters and attributes."""
    findings = []
    for check in _SQL_CHECKS:
        cursor = connection.execute(check.query)
        problems = tuple(check.text.format(*row) for row in itertools.islice(cursor, PROBLEMS_MAX))
        cursor.close(True)
        findings.append(Finding(check.name, check.promise, problems))
    return findings


def check_content(connection: apsw.Connection, store: BlockStore) -> list[Finding]:
    """Segments are well formed, lie inside their files, and name chunks that the store has."""
    shape: list[str] = []
    missing: list[str] = []
    rows = connection.execute(
        "SELECT s.ino, s.segment, s.bytes, s.extents, i.size "
        "FROM segments s JOIN inodes i USING(ino)"
    )
    for batch in _batches(rows, 64):
        known = store.contains({ChunkId(c) for row in batch for c in chunk_ids(row[3])})
        for ino, number, length, blob, size in batch:
            position = number * SEGMENT_BYTES
            total = 0
            for start, end, source, _ in decode_segment(number, blob):
                total += end - start
                if start < position or end <= start or end > (number + 1) * SEGMENT_BYTES:
                    shape.append(f"inode {ino}: extent at {start} overlaps or leaves its segment")
                if end > size:
                    shape.append(f"inode {ino}: extent at {start} lies beyond its size {size}")
                if source not in known:
                    missing.append(f"inode {ino}: chunk {source.hex()} at {start} is not stored")  # type: ignore[union-attr]
                position = end
            if total != length:
                shape.append(f"inode {ino}: segment {number} counts {length} bytes, has {total}")
    return [
        Finding(
            "extents-are-in-order",
            "extents lie in their segment, in order, inside the file",
            tuple(shape[:PROBLEMS_MAX]),
        ),
        Finding(
            CHUNKS_STORED,
            "every chunk that a recipe names is in the store",
            tuple(missing[:PROBLEMS_MAX]),
        ),
    ]


def _batches(
    rows: Iterable[tuple[int, int, int, bytes, int]], size: int
) -> Iterator[list[tuple[int, int, int, bytes, int]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def damaged_files(
    connection: apsw.Connection, any_lost: Callable[[set[ChunkId]], bool]
) -> list[bytes]:
    """Paths (without a leading slash) of the files that need a damaged or missing chunk."""
    inodes = set()
    for ino, blob in connection.execute("SELECT ino, extents FROM segments"):
        if ino not in inodes and any_lost({ChunkId(chunk_id) for chunk_id in chunk_ids(blob)}):
            inodes.add(ino)
    if not inodes:
        return []
    return sorted(
        _path(connection, parent, name)
        for parent, name, ino in connection.execute("SELECT parent, name, ino FROM dirents")
        if ino in inodes
    )


def _path(connection: apsw.Connection, parent: int, name: bytes) -> bytes:
    parts = [name]
    while parent != ROOT_INO and len(parts) < 4_096:
        row = connection.execute("SELECT parent FROM inodes WHERE ino = ?", (parent,)).fetchone()
        if row is None:
            break
        found = connection.execute(
            "SELECT name FROM dirents WHERE parent = ? AND ino = ?", (row[0], parent)
        ).fetchone()
        parts.append(found[0] if found else b"?")
        parent = row[0]
    return b"/".join(reversed(parts))
