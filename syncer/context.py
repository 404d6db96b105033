"""What a job is given besides its own words: folders, remotes, the door, the audit trail.

Everything dear is made when it is first asked for: a local copy opens no database, starts no
thread for remotes and loads none of their libraries.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncer.audit import AuditLog
    from syncer.remotes.bridge import Bridge
    from syncer.remotes.machinery import Machinery
    from syncer.remotes.policy import RemotePolicy
    from syncer.remotes.remote import Remote
    from syncer.remotes.wrappers import Hosts


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_STATE_HOME/orbit`, where `orbit` keeps its jobs and audit trail."""
    if chosen := environment.get("XDG_STATE_HOME"):
        return Path(chosen, "orbit")
    return Path(environment.get("HOME") or "~", ".local", "state", "orbit").expanduser()


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/orbit`, for what can be made again."""
    if chosen := environment.get("XDG_CACHE_HOME"):
        return Path(chosen, "orbit")
    return Path(environment.get("HOME") or "~", ".cache", "orbit").expanduser()


@dataclass(slots=True)
class Context:
    """One process's surroundings, shared by its jobs. `close` it.

    `door`: the daemon's chunks and namespace, in its worker only. `mount`: where the daemon's mount
    is, so that a path in it is told from a local one.
    """

    state: Path = field(default_factory=state_folder)
    cache: Path = field(default_factory=cache_folder)
    door: object | None = None
    mount: bytes | None = None
    repository: str = ""  # of `snapshot:` locations where there is no door
    wait_s: float = 600.0  # for a remote that is away, before what needs it fails
    remote_options: Mapping[str, str] = field(
        default_factory=dict
    )  # of every remote that is opened
    audited: bool = True
    _bridge: Bridge | None = None
    _machinery: Machinery | None = None
    _hosts: Hosts | None = None
    _policy: RemotePolicy | None = None
    _audit: AuditLog | None = None
    _closers: list[Callable[[], None]] = field(default_factory=list)

    @property
    def machinery(self) -> Machinery:
        """What drivers of remotes need; starts the bridge."""
        if self._machinery is None:
            from syncer.remotes.bridge import Bridge
            from syncer.remotes.credentials import Credentials, default_path
            from syncer.remotes.machinery import Machinery

            self._bridge = Bridge()
            self._bridge.start()
            self._machinery = Machinery(self._bridge, Credentials(default_path()))
        return self._machinery

    @property
    def hosts(self) -> Hosts:
        """What the remotes of one host share."""
        if self._hosts is None:
            from syncer.remotes.wrappers import Hosts

            self._hosts = Hosts()
        return self._hosts

    @property
    def policy(self) -> RemotePolicy:
        """How patient calls of remotes are; the job is more patient than a single call."""
        if self._policy is None:
            from syncer.remotes.policy import RemotePolicy

            self._policy = RemotePolicy()
        return self._policy

    async def open_remote(self, url: str, options: Mapping[str, str] | None = None) -> Remote:
        """A remote with retries, breaker and limits around it. Raises BadUrl, Denied."""
        from syncer.remotes import registry
        from syncer.remotes.wrappers import wrapped

        remote = await registry.open_remote(
            url, {**self.remote_options, **(options or {})}, self.machinery
        )
        return wrapped(remote, self.policy, self.hosts)

    def close(self) -> None:
        """Give everything up; blocks for some seconds at most."""
        while self._closers:
            self._closers.pop()()
        if self._bridge is not None:
            self._bridge.stop()
            self._bridge = self._machinery = None
