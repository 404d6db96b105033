"""Counts what is asked of a remote: every attempt, as it leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import trio

from syncer.remotes.errors import RemoteError
from syncer.remotes.remote import Attributes, ByteSource, Data, Entry, Remote, Version
from syncer.remotes.wrapper import Call, Verb, Wrapper

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteStatistics:
    """Since the remote was opened."""

    requests: Mapping[Verb, int]
    seconds: Mapping[Verb, float]  # their sum, without sinks and sources
    errors: Mapping[str, int]  # by the error's name; Cancelled too
    pages: int  # of listings
    bytes_read: int
    bytes_written: int  # of files written whole
    under_way: int  # requests


class _Clock:
    """The time that the caller's own code takes; also of several tasks at once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.times = 0
        self._inside = 0
        self._began = 0.0

    async def __aenter__(self) -> None:
        if not self._inside:
            self._began = trio.current_time()
        self._inside += 1
        self.times += 1

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._inside -= 1
        if not self._inside:
            self.seconds += trio.current_time() - self._began


class Counting(Wrapper):
    """The innermost wrapper."""

    def __init__(self, inner: Remote) -> None:
        super().__init__(inner)
        self._requests: Counter[Verb] = Counter()
        self._seconds: dict[Verb, float] = dict.fromkeys(Verb, 0.0)
        self._errors: Counter[str] = Counter()
        self._pages = 0
        self._bytes_read = 0
        self._bytes_written = 0
        self._under_way = 0

    @property
    def statistics(self) -> RemoteStatistics:
        """As of now."""
        return RemoteStatistics(
            requests=dict(self._requests),
            seconds={verb: self._seconds[verb] for verb in self._requests},
            errors=dict(self._errors),
            pages=self._pages,
            bytes_read=self._bytes_read,
            bytes_written=self._bytes_written,
            under_way=self._under_way,
        )

    async def _call(self, call: Call[T]) -> T:
        call.aside = clock = _Clock()
        self._requests[call.verb] += 1
        self._under_way += 1
        began = trio.current_time()
        try:
            return await call.go()
        except RemoteError as error:
            self._errors[type(error).__name__] += 1
            raise
        except trio.Cancelled:
            self._errors["Cancelled"] += 1
            raise
        finally:
            self._under_way -= 1
            self._seconds[call.verb] += trio.current_time() - began - clock.seconds
            if call.verb is Verb.LIST:
                self._pages += clock.times

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> Data:
        """See Remote."""
        data = await super().read(key, version, offset, length)
        self._bytes_read += len(data)
        return data

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        entry, data = await super().read_whole(key, size_max)
        self._bytes_read += len(data)
        return entry, data

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
        entry = await super().write(key, source, attributes, if_version=if_version, replace=replace)
        self._bytes_written += source.size
        return entry
