"""The remotes of this daemon: opened by URL, wrapped in patience, hosted by one bridge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ghostd.config import RemotesConfig
from ghostd.projections import ProjectionRefused
from syncer.remotes import registry
from syncer.remotes.bridge import Bridge
from syncer.remotes.credentials import Credentials, default_path
from syncer.remotes.machinery import Machinery
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.remote import Remote
from syncer.remotes.url import RemoteUrl
from syncer.remotes.wrappers import Hosts, wrapped


def policy_of(config: RemotesConfig, deadline_s: float) -> RemotePolicy:
    """The patience that the configuration asks for."""
    return RemotePolicy(
        deadline_s=deadline_s,
        attempts_max=config.attempts_max,
        backoff_s=config.backoff_s,
        backoff_max_s=config.backoff_max_s,
        attempt_timeout_s=config.attempt_timeout_s,
        breaker_failures=config.breaker_failures,
        breaker_pause_s=config.breaker_pause_s,
        breaker_pause_max_s=max(config.breaker_pause_s, config.breaker_pause_max_s),
        connections_max=config.connections_max,
        requests_per_s=config.requests_per_s or None,
        read_bytes_per_s=config.read_bytes_per_s or None,
        write_bytes_per_s=config.write_bytes_per_s or None,
    )


def _credentials(named: str) -> Credentials:
    if named:
        return Credentials(Path(named).expanduser(), required=True)
    return Credentials(default_path())


class Remotes:
    """Opens remotes. `start` before the first one, `stop` after the last one is closed."""

    def __init__(self, config: RemotesConfig, deadline_s: float, forbidden: list[Path]) -> None:
        self._bridge = Bridge()
        self._policy = policy_of(config, deadline_s)
        self._forbidden = forbidden
        self.hosts = Hosts()
        self._machinery = Machinery(
            bridge=self._bridge,
            credentials=_credentials(config.credentials),
            connect_timeout_s=min(10.0, config.attempt_timeout_s),
            read_timeout_s=config.attempt_timeout_s,
            connections_max=config.connections_max,
        )

    def start(self) -> None:
        """Start the bridge's thread."""
        self._bridge.start()

    def stop(self) -> None:
        """End it; blocks for some seconds at most."""
        self._bridge.stop()

    async def open(self, url: str, options: Mapping[str, str]) -> Remote:
        """A remote with retries, breaker and limits around it; asks no server.

        Raises BadUrl, Denied (credentials that cannot be read), ProjectionRefused for a folder that
        contains the mount or our own state, or lies in them: reading it would lead back here.
        """
        parsed = RemoteUrl.parse(url)
        if parsed.scheme == "file":
            path = Path(parsed.path.decode(errors="surrogateescape"))
            for ours in self._forbidden:
                if path.is_relative_to(ours) or ours.is_relative_to(path):
                    raise ProjectionRefused(
                        f"{url} and {ours}, which belongs to this filesystem, contain each other;"
                        " project another folder"
                    )
        remote = await registry.open_remote(url, options, self._machinery)
        return wrapped(remote, self._policy, self.hosts)
