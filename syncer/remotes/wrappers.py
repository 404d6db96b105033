"""Puts the wrappers around a remote, in the order that makes them work together.

Outermost first: retries see everything; a host that is left alone is told before the queues;
a request waits for its rate and its connection before its time starts; the breaker sees attempts,
timed out or not; what is counted is what leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from syncer.remotes.breaker import Breaker, Circuit, CircuitBreaker, Gate
from syncer.remotes.counting import Counting, RemoteStatistics
from syncer.remotes.errors import BadUrl
from syncer.remotes.limits import Deadline, Limited, RateLimit, Rates
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.remote import Remote
from syncer.remotes.retry import Retrying
from syncer.remotes.url import RemoteUrl


@dataclass(frozen=True, slots=True)
class Host:
    """What the remotes of one host share."""

    breaker: Breaker
    rates: Rates


@runtime_checkable
class HasOrigin(Protocol):
    """A remote whose URL does not say which server it is on."""

    @property
    def origin(self) -> str:
        """The server's scheme, host and port."""


def host_name(remote: Remote) -> str:
    """Scheme, host and port; of what has no host, the whole URL."""
    if isinstance(remote, HasOrigin):
        return remote.origin
    url = remote.url
    try:
        parsed = RemoteUrl.parse(url)
    except BadUrl:
        return url
    return parsed.origin if parsed.host else url


class Hosts:
    """All hosts of a process, by name, kept for as long as it lives."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}

    def host(self, name: str, policy: RemotePolicy) -> Host:
        """Return the host; the first policy that asks for it sets its rates."""
        if name not in self._hosts:
            self._hosts[name] = Host(Breaker(), Rates(policy))
        return self._hosts[name]

    @property
    def circuits(self) -> dict[str, Circuit]:
        """The state of every host's circuit, for people."""
        return {name: host.breaker.circuit for name, host in self._hosts.items()}


class Wrapped(Retrying):
    """A remote with everything around it."""

    def __init__(self, remote: Remote, policy: RemotePolicy, host: Host) -> None:
        self._counting = Counting(remote)
        self.host = host
        timed = Deadline(self._counting, policy)
        broken = CircuitBreaker(timed, policy, host.breaker)
        limited = Limited(broken, policy.connections_max)
        metered = RateLimit(limited, host.rates) if host.rates.limited else limited
        super().__init__(Gate(metered, host.breaker), policy)

    @property
    def statistics(self) -> RemoteStatistics:
        """What left for the server so far."""
        return self._counting.statistics


def wrapped(remote: Remote, policy: RemotePolicy, hosts: Hosts) -> Wrapped:
    """Put all wrappers around `remote`; what its host shares comes from `hosts`."""
    return Wrapped(remote, policy, hosts.host(host_name(remote), policy))
