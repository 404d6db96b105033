"""Limits of one remote, or of all remotes of a host: time, connections, bytes and requests.

The token bucket is pure. It lets a request go when nothing is owed and then takes what the request
needs, so that a request may be larger than what can be saved up, and nobody overtakes: within any
stretch of t seconds at most `rate * (burst_s + t)` and one request more go through.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

import trio

from syncer.remotes.errors import Unreachable
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.remote import Attributes, ByteSource, Entry, Remote, Version
from syncer.remotes.wrapper import Call, Verb, Wrapper

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens: bytes or requests."""

    rate: float  # tokens a second
    burst: float  # tokens at most
    level: float  # tokens now; below zero: owed
    at: float  # seconds of the loop's clock


def take(bucket: Bucket, tokens: float, now: float) -> tuple[Bucket, float]:
    """Take tokens; return the seconds to wait before using them."""
    level = min(bucket.burst, bucket.level + (now - bucket.at) * bucket.rate)
    wait_s = max(0.0, -level / bucket.rate)
    return replace(bucket, level=level - tokens, at=now), wait_s


class Rate:
    """A bucket that tasks wait at, in the order they come; without a rate, nobody waits."""

    def __init__(self, rate: float | None, burst_s: float) -> None:
        self._bucket: Bucket | None = None
        if rate is not None:
            burst = max(1.0, rate * burst_s)
            self._bucket = Bucket(rate, burst, burst, trio.current_time())

    @property
    def limited(self) -> bool:
        """Whether anybody ever waits."""
        return self._bucket is not None

    def charge(self, tokens: float) -> float:
        """Take tokens that are used already or in a while; return the seconds until then."""
        if self._bucket is None:
            return 0.0
        self._bucket, wait_s = take(self._bucket, tokens, trio.current_time())
        return wait_s

    async def wait(self, tokens: float) -> None:
        """Wait until the tokens may be used; given back when cancelled."""
        wait_s = self.charge(tokens)
        if wait_s > 0:
            try:
                await trio.sleep(wait_s)
            except trio.Cancelled:
                self.charge(-tokens)
                raise


class Rates:
    """One host's."""

    def __init__(self, policy: RemotePolicy) -> None:
        self.requests = Rate(policy.requests_per_s, policy.burst_s)
        self.read_bytes = Rate(policy.read_bytes_per_s, policy.burst_s)
        self.write_bytes = Rate(policy.write_bytes_per_s, policy.burst_s)

    @property
    def limited(self) -> bool:
        """Whether anybody ever waits."""
        return any(rate.limited for rate in (self.requests, self.read_bytes, self.write_bytes))


class _Metered:
    """A source that is read no faster than the rate."""

    def __init__(self, source: ByteSource, rate: Rate) -> None:
        self._source = source
        self._rate = rate

    @property
    def size(self) -> int:
        return self._source.size

    async def read(self, offset: int, length: int) -> bytes:
        await self._rate.wait(length)
        return await self._source.read(offset, length)


class _Aside:
    """What happens before and after the sink of a listing, unless it fails."""

    def __init__(self, before: Callable[[], None], after: Callable[[], Awaitable[None]]) -> None:
        self._before = before
        self._after = after

    async def __aenter__(self) -> None:
        self._before()

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            await self._after()


class _Pause:
    """Stops a deadline's clock; it starts anew when the last task has come back."""

    def __init__(self, scope: trio.CancelScope, limit_s: float) -> None:
        self._scope = scope
        self._limit_s = limit_s
        self._inside = 0

    async def __aenter__(self) -> None:
        self._inside += 1
        self._scope.deadline = math.inf

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._inside -= 1
        if not self._inside:
            self._scope.deadline = trio.current_time() + self._limit_s


class RateLimit(Wrapper):
    """Requests and bytes a second."""

    def __init__(self, inner: Remote, rates: Rates) -> None:
        super().__init__(inner)
        self._rates = rates

    async def _call(self, call: Call[T]) -> T:
        if call.verb is Verb.LIST:
            call.aside = _Aside(lambda: None, self._next_page)
        await self._rates.requests.wait(1)
        if call.size:
            await self._rates.read_bytes.wait(call.size)
        return await call.go()

    async def _next_page(self) -> None:
        await self._rates.requests.wait(1)

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote. What it costs is known afterwards: the next one waits."""
        await self._rates.read_bytes.wait(0)
        entry, data = await super().read_whole(key, size_max)
        self._rates.read_bytes.charge(len(data))
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
        metered = _Metered(source, self._rates.write_bytes)
        return await super().write(key, metered, attributes, if_version=if_version, replace=replace)


class Limited(Wrapper):
    """So many calls at a time. A listing gives its place away while its sink is at work.

    So a sink may call the remote that it lists.
    """

    def __init__(self, inner: Remote, connections_max: int) -> None:
        super().__init__(inner)
        self.limiter = trio.CapacityLimiter(connections_max)

    async def _call(self, call: Call[T]) -> T:
        limiter = self.limiter
        held = False

        async def acquire() -> None:
            nonlocal held
            await limiter.acquire_on_behalf_of(call)
            held = True

        def release() -> None:
            nonlocal held
            held = False
            limiter.release_on_behalf_of(call)

        if call.verb is Verb.LIST:
            call.aside = _Aside(release, acquire)
        await acquire()
        try:
            return await call.go()
        finally:
            if held:
                release()


class Deadline(Wrapper):
    """Bounds one attempt: the time that the remote takes, not the caller's sink or source."""

    def __init__(self, inner: Remote, policy: RemotePolicy) -> None:
        super().__init__(inner)
        self._policy = policy

    async def _call(self, call: Call[T]) -> T:
        policy = self._policy
        limit_s = policy.write_timeout_s if call.verb is Verb.WRITE else policy.attempt_timeout_s
        with trio.move_on_after(limit_s) as scope:
            call.aside = _Pause(scope, limit_s)
            return await call.go()
        # Only the scope's own expiry gets here: its cancellation is what the `with` swallows.
        raise Unreachable(
            f"{self.url}: no answer to {call.verb} of {call.key!r} within {limit_s:g} s; "
            f"is the server overloaded, or a firewall dropping packets?"
        )

    async def close(self) -> None:
        """See Remote."""
        with trio.move_on_after(self._policy.close_timeout_s):
            await super().close()
