"""What all wrappers of remotes have in common: every method goes through `_call`."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from syncer.remotes.remote import (
    Attributes,
    ByteSource,
    Capabilities,
    Data,
    Entry,
    Page,
    PageSink,
    Remote,
    Version,
)

T = TypeVar("T")

Aside = contextlib.AbstractAsyncContextManager[Any, None]


class Verb(enum.StrEnum):
    """The methods of a remote that ask the server."""

    LIST = "list"
    STAT = "stat"
    READ = "read"
    READ_WHOLE = "read_whole"
    WRITE = "write"
    RENAME = "rename"
    DELETE = "delete"
    MKDIR = "mkdir"
    SYMLINK = "symlink"
    SET_ATTRIBUTES = "set_attributes"


@dataclass(slots=True, eq=False)  # each call is itself
class Call(Generic[T]):
    """One call on its way in; `go` sends it on, as often as one likes."""

    verb: Verb
    key: bytes
    size: int  # bytes that a read asks for
    go: Callable[[], Awaitable[T]]
    # Entered while the caller's own code runs: the sink of a listing, the source of a write.
    # Sources may be read by several tasks at once.
    aside: Aside = field(default_factory=contextlib.nullcontext)


class _Source:
    """A source whose reads count as the caller's time."""

    def __init__(self, source: ByteSource, call: Callable[[], Call[Entry]]) -> None:
        self._source = source
        self._call = call

    @property
    def size(self) -> int:
        return self._source.size

    async def read(self, offset: int, length: int) -> bytes:
        async with self._call().aside:
            return await self._source.read(offset, length)


class Wrapper:
    """A remote around a remote. As it stands it changes nothing; subclasses override `_call`."""

    def __init__(self, inner: Remote) -> None:
        self._inner = inner

    async def _call(self, call: Call[T]) -> T:
        return await call.go()

    @property
    def url(self) -> str:
        """As inside."""
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        """As inside."""
        return self._inner.capabilities

    async def list(self, key: bytes, sink: PageSink) -> None:
        """See Remote."""

        async def relay(page: Page) -> None:
            async with call.aside:
                await sink(page)

        call = Call(Verb.LIST, key, 0, lambda: self._inner.list(key, relay))
        await self._call(call)

    async def stat(self, key: bytes) -> Entry:
        """See Remote."""
        return await self._call(Call(Verb.STAT, key, 0, lambda: self._inner.stat(key)))

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> Data:
        """See Remote."""
        call = Call(Verb.READ, key, length, lambda: self._inner.read(key, version, offset, length))
        return await self._call(call)

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        return await self._call(
            Call(Verb.READ_WHOLE, key, 0, lambda: self._inner.read_whole(key, size_max))
        )

    async def write(
        self,
        key: bytes,
        source: ByteSource,
        attributes: Attributes | None = None,
        *,
        if_version: Version | None = None,
        replace: bool = True,
    ) -> Entry:
        """See Remote."""
        relay = _Source(source, lambda: call)
        call: Call[Entry] = Call(
            Verb.WRITE,
            key,
            0,
            lambda: self._inner.write(
                key, relay, attributes, if_version=if_version, replace=replace
            ),
        )
        return await self._call(call)

    async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:
        """See Remote."""
        await self._call(
            Call(Verb.RENAME, key, 0, lambda: self._inner.rename(key, new_key, replace=replace))
        )

    async def delete(self, key: bytes) -> None:
        """See Remote."""
        await self._call(Call(Verb.DELETE, key, 0, lambda: self._inner.delete(key)))

    async def mkdir(self, key: bytes) -> None:
        """See Remote."""
        await self._call(Call(Verb.MKDIR, key, 0, lambda: self._inner.mkdir(key)))

    async def symlink(self, key: bytes, target: bytes) -> None:
        """See Remote."""
        await self._call(Call(Verb.SYMLINK, key, 0, lambda: self._inner.symlink(key, target)))

    async def set_attributes(self, key: bytes, attributes: Attributes) -> None:
        """See Remote."""
        await self._call(
            Call(Verb.SET_ATTRIBUTES, key, 0, lambda: self._inner.set_attributes(key, attributes))
        )

    async def close(self) -> None:
        """See Remote; not a call like the others."""
        await self._inner.close()
