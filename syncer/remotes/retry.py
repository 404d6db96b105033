"""Trying again what failed for a moment.

Only transient errors are worth it, and only where another attempt can do no harm:

- a listing while none of its pages was handed on;
- a write, since its source can be read again. A conditional one that was cut off may have been
  done: then the content at the remote decides;
- a rename, delete, mkdir or symlink that was cut off is looked up first: what has happened is not
  done again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import trio

from syncer.remotes.breaker import NotTried
from syncer.remotes.errors import (
    TRANSIENT,
    Busy,
    Changed,
    Garbled,
    Missing,
    RemoteError,
    Unreachable,
)
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.remote import Attributes, ByteSource, Entry, Kind, Remote, Version
from syncer.remotes.wrapper import Call, Verb, Wrapper

T = TypeVar("T")

# What had been done after all, as a tuple of one, or None: nothing.
Happened = Callable[[], Awaitable[tuple[T] | None]]

_AFTER_BREAKER_S = 0.01
_COMPARE_BYTES = 4 << 20  # read back at a time


def backoff_s(attempt: int, jitter: float, policy: RemotePolicy) -> float:
    """How long to wait after the `attempt`th failure, from 1; `jitter` is in [0, 1).

    Between half of the doubling time and all of it, so that clients that failed together do not
    come back together.
    """
    doubled = policy.backoff_s * 2.0 ** min(attempt - 1, 60)
    return min(doubled, policy.backoff_max_s) * (0.5 + jitter / 2)


def next_wait_s(
    error: RemoteError,
    attempt: int,
    garbled: int,
    left_s: float,
    jitter: float,
    policy: RemotePolicy,
) -> float | None:
    """How long to wait before the next attempt, or None: give up.

    `attempt` were sent and failed, `garbled` of them by Garbled, `left_s` is what remains of the
    deadline.
    """
    if not isinstance(error, TRANSIENT):
        return None
    if isinstance(error, NotTried):
        if not attempt:
            return None  # who comes while the host is left alone is told at once
        wait_s = error.retry_in_s
        if wait_s is None:
            wait_s = backoff_s(attempt, jitter, policy)
        wait_s += _AFTER_BREAKER_S
        return wait_s if wait_s < left_s else None
    if attempt >= policy.attempts_max:
        return None
    if isinstance(error, Garbled) and garbled >= policy.garbled_max:
        return None
    wait_s = backoff_s(attempt, jitter, policy)
    if isinstance(error, Busy) and error.retry_after_s is not None:
        wait_s = max(wait_s, error.retry_after_s * (1 + jitter / 10))
    return wait_s if wait_s < left_s else None


class _Handed:
    """Entered when a listing hands on a page: from there on neither retried nor bounded here."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.once = False
        self._scope = scope

    async def __aenter__(self) -> None:
        self.once = True
        self._scope.deadline = math.inf

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        pass


class Retrying(Wrapper):
    """Tries again, within one deadline for all attempts."""

    def __init__(
        self, inner: Remote, policy: RemotePolicy, jitter: Callable[[], float] = random.random
    ) -> None:
        super().__init__(inner)
        self._policy = policy
        self._jitter = jitter
        self.retries = 0  # so far

    async def _call(self, call: Call[T], happened: Happened[T] | None = None) -> T:
        # A write takes as long as it takes; each attempt of it is bounded by itself.
        limit_s = math.inf if call.verb is Verb.WRITE else self._policy.deadline_s
        failures: list[RemoteError] = []
        with trio.move_on_after(limit_s) as scope:
            return await self._repeat(call, scope, failures, happened)
        last = f"; the last failure: {failures[-1]}" if failures else ""
        raise Unreachable(
            f"{self.url}: {call.verb} of {call.key!r} given up after {limit_s:g} s{last}"
        )

    async def _repeat(
        self,
        call: Call[T],
        scope: trio.CancelScope,
        failures: list[RemoteError],
        happened: Happened[T] | None,
    ) -> T:
        """Attempts until one succeeds or none is left."""
        call.aside = handed = _Handed(scope)
        give_up_at = scope.deadline
        doubt = False  # an earlier attempt may have been done

        async def attempt() -> T:
            if happened is None or not doubt:
                return await call.go()
            if (done := await happened()) is not None:
                return done[0]
            try:
                return await call.go()
            except TRANSIENT:
                raise
            except RemoteError:
                # Missing, say: what was cut off has arrived late, and renamed it after all.
                if (done := await happened()) is not None:
                    return done[0]
                raise

        while True:
            try:
                return await attempt()
            except TRANSIENT as error:
                failures.append(error)
                # With a write, the clock starts when it fails first.
                give_up_at = min(give_up_at, trio.current_time() + self._policy.deadline_s)
                wait_s = self._next_wait_s(failures, give_up_at)
                if wait_s is None or (call.verb is Verb.LIST and handed.once):
                    raise
                doubt |= not isinstance(error, Busy | NotTried)
            self.retries += 1
            await trio.sleep(wait_s)

    def _next_wait_s(self, failures: list[RemoteError], give_up_at: float) -> float | None:
        return next_wait_s(
            failures[-1],
            sum(not isinstance(error, NotTried) for error in failures),
            sum(isinstance(error, Garbled) for error in failures),
            give_up_at - trio.current_time(),
            self._jitter(),
            self._policy,
        )

    async def _look(self, key: bytes) -> Entry | None:
        try:
            return await self._inner.stat(key)
        except Missing:
            return None

    async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:
        """See Remote."""

        async def happened() -> tuple[None] | None:
            gone = await self._look(key) is None
            return (None,) if gone and await self._look(new_key) is not None else None

        def go() -> Awaitable[None]:
            return self._inner.rename(key, new_key, replace=replace)

        await self._call(Call(Verb.RENAME, key, 0, go), happened)

    async def delete(self, key: bytes) -> None:
        """See Remote."""

        async def happened() -> tuple[None] | None:
            return (None,) if await self._look(key) is None else None

        await self._call(Call(Verb.DELETE, key, 0, lambda: self._inner.delete(key)), happened)

    async def mkdir(self, key: bytes) -> None:
        """See Remote."""

        async def happened() -> tuple[None] | None:
            found = await self._look(key)
            return (None,) if found is not None and found.kind is Kind.DIRECTORY else None

        await self._call(Call(Verb.MKDIR, key, 0, lambda: self._inner.mkdir(key)), happened)

    async def symlink(self, key: bytes, target: bytes) -> None:
        """See Remote."""

        async def happened() -> tuple[None] | None:
            found = await self._look(key)
            return (None,) if found is not None and found.target == target else None

        def go() -> Awaitable[None]:
            return self._inner.symlink(key, target)

        await self._call(Call(Verb.SYMLINK, key, 0, go), happened)

    async def write(
        self,
        key: bytes,
        source: ByteSource,
        attributes: Attributes | None = None,
        *,
        if_version: Version | None = None,
        replace: bool = True,
    ) -> Entry:
        """See Remote. Unconditional, it is done again; else see `_holds`."""

        async def happened() -> tuple[Entry] | None:
            found = await self._look(key)
            if found is None or found.version == if_version:
                return None
            return (found,) if await self._holds(found, source) else None

        def go() -> Awaitable[Entry]:
            return self._inner.write(
                key, source, attributes, if_version=if_version, replace=replace
            )

        conditional = if_version is not None or not replace
        return await self._call(Call(Verb.WRITE, key, 0, go), happened if conditional else None)

    async def _holds(self, found: Entry, source: ByteSource) -> bool:
        """Whether the file is what was to be written: then it does not matter who wrote it."""
        if found.kind is not Kind.FILE or found.size != source.size:
            return False
        try:
            for offset in range(0, source.size, _COMPARE_BYTES):
                length = min(_COMPARE_BYTES, source.size - offset)
                there = await self._inner.read(found.key, found.version, offset, length)
                if there != await source.read(offset, length):
                    return False
        except Changed:
            return False
        return True
