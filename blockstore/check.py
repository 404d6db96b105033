"""Every promise of the store as a named check.

The fast checks read tables and the index; with `data` every record is read back, decoded and
hashed. A check never repairs anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blockstore.disk import Disk
from blockstore.errors import FormatTooNew, OrbitError
from blockstore.ids import Location, PackId, pack_name, pack_number
from blockstore.index import KEY_BYTES, Index, IndexedRow, PackRow, PackState
from blockstore.opening import Identity
from blockstore.packfile import (
    HEADER_BYTES,
    Entry,
    FormatError,
    Kind,
    ReadAt,
    decode_pack_header,
    pack_salt,
    read_seal,
    scan,
)

_PROBLEMS_MAX = 1000  # named per check; more are counted


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One promise, and where it is broken."""

    name: str
    promise: str
    ok: bool
    problems: tuple[str, ...]  # each names its pack or chunk
    damaged: tuple[bytes, ...] = ()  # ids of chunks that cannot be read


class _Check:
    def __init__(self, name: str, promise: str) -> None:
        self._name = name
        self._promise = promise
        self._problems: list[str] = []
        self._more = 0
        self._damaged: list[bytes] = []

    def fail(self, problem: str, chunk: bytes | None = None) -> None:
        if len(self._problems) < _PROBLEMS_MAX:
            self._problems.append(problem)
        else:
            self._more += 1
        if chunk is not None:
            self._damaged.append(chunk)

    def result(self) -> CheckResult:
        problems = list(self._problems)
        if self._more:
            problems.append(f"and {self._more} more")
        return CheckResult(
            self._name, self._promise, not problems, tuple(problems), tuple(self._damaged)
        )


@dataclass(frozen=True, slots=True)
class Checker:
    """Runs all checks.

    The caller has flushed the writer and lets nothing be collected or merged meanwhile.
    """

    disk: Disk
    folder: Path  # of the packs
    identity: Identity
    index: Index
    border: PackId  # packs from here on were begun after the flush: they are not looked at
    data: bool  # read everything back

    def run(self) -> list[CheckResult]:
        """Return the results, one a promise."""
        checks = _Checks()
        for problem in self.index.integrity():
            checks.database.fail(problem)
        packs = self.index.packs
        names = set(self.disk.listdir(self.folder))
        for name in sorted(names):
            stray = self._stray(name)
            if stray:
                checks.known.fail(f"{name} {stray}")
        roots = {root.location for root in self.index.roots()}
        for number, row in sorted(packs.items()):
            name = pack_name(number)
            if name not in names:
                checks.listed.fail(f"{name} is missing")
                continue
            try:
                with self._open(row) as opened:
                    self._check_pack(opened, checks, {r for r in roots if r.pack == number})
            except OrbitError as error:
                checks.listed.fail(f"{name}: {error}")
        for number, group in self.index.rows_by_pack():
            # Asked now: a writer may have told the index more since the check began.
            known = self.index.packs.get(number)
            if known is not None:
                self._check_rows(known, group, checks.rows)
        return [
            check.result()
            for check in vars(checks).values()
            if check is not checks.content or self.data
        ]

    def _stray(self, name: str) -> str:
        """Return what is wrong with a file that is no known pack, and what to do; "" if nothing."""
        number = pack_number(name)
        if number is None:
            return "is not a pack: move it out of this folder"
        if number >= self.border or number in self.index.packs:
            return ""
        try:
            file = self.disk.open(self.folder / name)
        except FileNotFoundError:
            return ""
        try:
            if file.size() <= HEADER_BYTES:
                return ""  # its first write failed: there is nothing in it
            header = decode_pack_header(file.pread(HEADER_BYTES, 0), name)
            foreign = header.store_uuid != self.identity.uuid
        except (FormatError, FormatTooNew, OrbitError):
            foreign = False
        finally:
            file.close()
        if foreign:
            return "is a pack of another store: move it out of this folder"
        return (
            "has come into this folder since the start, or is left from a failed write: nothing "
            "is lost; restart the program, which reads it in or removes it"
        )

    @contextlib.contextmanager
    def _open(self, row: PackRow) -> Iterator[_Pack]:
        file = self.disk.open(self.folder / pack_name(row.number))
        try:
            yield _Pack(file.pread, file.size(), row, pack_salt(self.identity.uuid, row.number))
        finally:
            file.close()

    def _check_pack(self, pack: _Pack, checks: _Checks, roots: set[Location]) -> None:
        name, row = pack.name, pack.row
        if pack.size < row.bytes:
            checks.listed.fail(f"{name} has {pack.size} bytes, {row.bytes} are indexed")
        try:
            header = decode_pack_header(pack.read(HEADER_BYTES, 0), name)
            if header.store_uuid != self.identity.uuid or header.pack != row.number:
                checks.headers.fail(f"{name} has the header of another pack or store")
            elif header.chunker != self.identity.chunker:
                checks.headers.fail(f"{name} was cut with other parameters")
        except (FormatError, FormatTooNew) as error:
            checks.headers.fail(f"{name}: {error}")
        table = pack.table()
        if row.state is PackState.SEALED and table is None:
            checks.tables.fail(f"{name}: its table is damaged")
        entries = pack.entries()
        if len(entries) != row.records:
            checks.records.fail(f"{name} has {len(entries)} records, {row.records} are indexed")
        chunks = [entry.id for entry in entries if entry.is_chunk]
        places = self.index.lookup(chunks)
        for chunk in chunks:
            if chunk not in places:
                checks.records.fail(f"{name}: chunk {chunk.hex()} is not indexed", chunk)
        own_roots = {entry.offset for entry in entries if entry.kind == Kind.ROOT}
        for root in roots:
            if root.offset not in own_roots:
                checks.roots.fail(f"{name}: no root record at {root.offset}")
        if self.data:
            _check_content(pack, entries, checks.content)

    def _check_rows(self, row: PackRow, group: list[IndexedRow], rows: _Check) -> None:
        try:
            with self._open(row) as pack:
                places = {
                    (entry.offset, entry.id[:KEY_BYTES]): entry.location(row.number)
                    for entry in pack.entries()
                }
        except (OrbitError, FileNotFoundError):
            return  # reported by packs-present
        for key, offset, length, share in group:
            if places.get((offset, key)) != Location(row.number, offset, length, share):
                rows.fail(f"{pack_name(row.number)}: row {key.hex()} names no record at {offset}")


class _Checks:
    def __init__(self) -> None:
        self.database = _Check("index-database", "chunks.db is a sound database")
        self.listed = _Check(
            "packs-present", "every pack the index knows is there, as long as it was"
        )
        self.known = _Check("packs-known", "every file in packs/ is a pack that the index knows")
        self.headers = _Check("pack-headers", "every pack's header is whole and of this store")
        self.tables = _Check("pack-tables", "every sealed pack ends in its whole table")
        self.records = _Check("records-indexed", "the index has every record of every pack")
        self.rows = _Check("rows-valid", "every index row names a record in its pack")
        self.roots = _Check("roots", "every root record the index names is in its pack")
        self.content = _Check("content", "every record's bytes are the ones that were stored")


@dataclass(frozen=True, slots=True)
class _Pack:
    """A pack under examination."""

    read: ReadAt
    size: int
    row: PackRow
    salt: int

    @property
    def name(self) -> str:
        return pack_name(self.row.number)

    def table(self) -> list[Entry] | None:
        return read_seal(self.read, self.size, self.salt)

    def entries(self) -> list[Entry]:
        """Return what the pack should hold, its data unread."""
        table = self.table() if self.row.state is PackState.SEALED else None
        if table is not None:
            return table
        end = min(self.size, self.row.bytes)
        scanned = scan(self.read, end, self.salt, verify_from=end)
        return [entry for item in scanned for entry in item.entries]


def _check_content(pack: _Pack, entries: list[Entry], content: _Check) -> None:
    scanned = scan(pack.read, min(pack.size, pack.row.bytes), pack.salt)
    intact = {item.offset for item in scanned if item.intact}
    for entry in entries:
        if entry.offset not in intact:
            what = "chunk" if entry.is_chunk else "root record"
            content.fail(f"{pack.name}: {what} {entry.id.hex()} is damaged", entry.id)
