"""Root records: what a store's user leaves in the packs so that the packs alone bring it back."""

from __future__ import annotations

import threading
from typing import NamedTuple

from blockstore.errors import ChunkDamaged
from blockstore.ids import MAX_CHUNK, Location, pack_name
from blockstore.index import Index, RootRow
from blockstore.packfile import RECORD_BYTES, decode_record_header, open_payload
from blockstore.reader import PackFiles
from blockstore.writer import ROOT_SEQ_BYTES, Writer, root_record

ROOTS_KEPT = 3
ROOT_BYTES_MAX = MAX_CHUNK - ROOT_SEQ_BYTES


class RootRecord(NamedTuple):
    """A root record: what it names is up to the writer."""

    seq: int  # grows with each root
    payload: bytes


class Roots:
    """Appends and reads root records."""

    def __init__(self, writer: Writer, index: Index, files: PackFiles, seq: int) -> None:
        self._writer = writer
        self._index = index
        self._files = files
        self._seq = seq
        self._lock = threading.Lock()

    def append(self, payload: bytes) -> None:
        """Append a record; everything it names is durable. On an error nothing has happened."""
        with self._lock:
            seq = self._seq + 1
            self._writer.append([root_record(seq.to_bytes(ROOT_SEQ_BYTES, "little") + payload)])
            self._seq = seq

    def newest(self) -> list[RootRecord]:
        """Return the newest ones (ROOTS_KEPT at most), newest last. Raises ChunkDamaged."""
        return [RootRecord(row.seq, self._read(row)) for row in self._rows()[-ROOTS_KEPT:]]

    def kept(self) -> list[Location]:
        """Return where those lie that a collection keeps."""
        return [row.location for row in self._rows()[-ROOTS_KEPT:]]

    def _rows(self) -> list[RootRow]:
        rows = dict(self._writer.pending_roots)
        rows.update((row.seq, row) for row in self._index.roots() if row.seq not in rows)
        return [rows[seq] for seq in sorted(rows)]

    def _read(self, row: RootRow) -> bytes:
        pack, offset, length, _ = row.location
        with self._files.using(pack) as file:
            data = memoryview(file.pread(RECORD_BYTES + length, offset))
        header = decode_record_header(data[:RECORD_BYTES], offset, self._files.salt(pack))
        raw = None if header is None else open_payload(header, data[RECORD_BYTES:])
        if raw is None or int.from_bytes(raw[:ROOT_SEQ_BYTES], "little") != row.seq:
            raise ChunkDamaged(header.id if header else bytes(32), pack_name(pack))
        return raw[ROOT_SEQ_BYTES:]
