"""What a kind of object store must offer, so that `objects` can make a remote of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from syncer.remotes.errors import Unsupported
from syncer.remotes.object_http import ObjectHttp
from syncer.remotes.remote import Capabilities, Data


class TooLarge(Unsupported):
    """An object is larger than it may be to be read whole."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of one object."""

    key: bytes  # the whole of it, from the bucket's root
    size: int
    etag: str = ""
    mtime_ns: int = 0
    md5: bytes | None = None  # of the content, where the store is certain of it
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    is_folder: bool = False  # stands for a directory: an empty object by agreement


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a listing."""

    objects: Sequence[ObjectInfo]
    prefixes: Sequence[bytes]  # the directories, each ending in `/`
    following: str = ""  # asks for the next page; "" after the last


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold for a write."""

    etag: str = ""  # the object there has this one
    absent: bool = False  # there is none


class Upload(Protocol):
    """An object on its way to a store, in parts; nobody sees it before `finish`."""

    async def put(self, index: int, data: bytes) -> None:
        """Send one part, counted from 0."""

    async def finish(self) -> ObjectInfo:
        """Make it the object. Raises Changed, Exists by its condition."""

    async def abort(self) -> None:
        """Take it back."""


class Store(Protocol):
    """A bucket or container. All methods are for the bridge's loop, all keys are whole."""

    http: ObjectHttp
    capabilities: Capabilities
    part_bytes_min: int
    parts_max: int
    parts_at_once: int  # 1: one after the other, in order

    async def list(self, prefix: bytes, following: str, keys_max: int) -> Listed:
        """A page of what begins with `prefix`, up to the next `/`."""

    async def head(self, key: bytes) -> ObjectInfo:
        """One object. Raises Missing."""

    async def get(
        self, key: bytes, etag: str, start: int, end: int | None, size_max: int
    ) -> tuple[ObjectInfo, Data]:
        """Bytes from `start` up to `end` (None: all, if they are at most `size_max`).

        Raises Changed where `etag` is not "" and not the object's, TooLarge.
        """

    def md5_of_etag(self, etag: str) -> bytes | None:
        """The MD5 of the content, where the etag looks like one."""

    async def confirms_md5(self, info: ObjectInfo) -> bool:
        """Whether that is really what the etag is. Asked when the bytes have another one."""

    async def put(
        self, key: bytes, data: bytes, condition: Condition, metadata: Mapping[str, bytes]
    ) -> ObjectInfo:
        """Write an object in one request."""

    async def begin(
        self, key: bytes, size: int, condition: Condition, metadata: Mapping[str, bytes]
    ) -> Upload:
        """Begin to write one in parts. Leaves nothing behind when it is cancelled."""

    async def copy(self, source: ObjectInfo, key: bytes, condition: Condition) -> None:
        """Copy an object at the server, metadata included."""

    async def delete(self, info: ObjectInfo) -> None:
        """Delete an object that is there."""

    async def set_metadata(self, info: ObjectInfo, metadata: Mapping[str, bytes]) -> None:
        """Replace its metadata."""

    async def close(self) -> None:
        """Give up connections."""
