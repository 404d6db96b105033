"""Every error the product expects, named by what the caller can do about it."""

from __future__ import annotations


class OrbitError(Exception):
    """Root of all expected errors of the product; anything else is a bug."""


class StorageFull(OrbitError):
    """The state folder has no space (or quota) left: free some and try again."""


class StorageFailed(OrbitError):
    """The disk under the state folder failed to read or write."""


class ChunkMissing(OrbitError):
    """No pack holds the chunk."""

    def __init__(self, chunk_id: bytes) -> None:
        super().__init__(f"chunk {chunk_id.hex()} is not in the store")
        self.chunk_id = chunk_id


class ChunkDamaged(OrbitError):
    """The bytes on the disk are not the ones that were stored."""

    def __init__(self, chunk_id: bytes, pack: str) -> None:
        super().__init__(
            f"chunk {chunk_id.hex()} in {pack} is damaged; storing the same bytes again repairs it"
        )
        self.chunk_id = chunk_id
        self.pack = pack


class FormatTooNew(OrbitError):
    """A file was written by a newer version of the product."""

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(
            f"{path} has format version {found}, this program knows {known}: use a newer program"
        )
        self.found = found
        self.known = known


class StoreInvalid(OrbitError):
    """The store's files contradict each other or the options it is opened with."""


class StoreLocked(OrbitError):
    """Another process has the store open."""


class CollectionAbandoned(OrbitError):
    """A collection gave up before it removed anything; the store is unchanged."""
