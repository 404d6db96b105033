"""What a job is given besides its own words: folders, remotes, the door, the audit trail.

Everything dear is made when it is first asked for: a local copy opens no database, starts no
thread for remotes and loads none of their libraries.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from syncer.audit import AuditLog
    from syncer.bandwidth import Bandwidth
    from syncer.remotes.bridge import Bridge
    from syncer.remotes.machinery import Machinery
    from syncer.remotes.policy import RemotePolicy
    from syncer.remotes.remote import Remote
    from syncer.remotes.wrappers import Hosts, Wrapped


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
class _Shared:
    """What all jobs of a process use."""

    bridge: Bridge | None = None
    machinery: Machinery | None = None
    hosts: Hosts | None = None
    policy: RemotePolicy | None = None
    audit: AuditLog | None = None
    remotes: WeakSet[Wrapped] = field(default_factory=WeakSet)  # that are open


@dataclass(frozen=True, slots=True)
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
    classes: tuple[tuple[str, str], ...] = ()  # globs and the semantic class of what they match
    bandwidth: Bandwidth | None = None  # the bucket of all jobs of this process
    audited: bool = True
    audit_keep_days: int = 0  # older records of the audit trail are removed; 0: none are
    credentials: str = (
        ""  # the file with the remotes' credentials; "": the usual one, if it is there
    )
    policy: RemotePolicy | None = None  # patience with single calls; the job has more; None: usual
    # By place (a URL or the beginning of one): what the remotes there are opened with.
    remote_options: tuple[tuple[str, Mapping[str, str]], ...] = ()
    _shared: _Shared = field(default_factory=_Shared)

    def with_remote_options(self, *options: tuple[str, Mapping[str, str]]) -> Context:
        """The same surroundings, for one job that opens its remotes with these options."""
        return replace(self, remote_options=options)

    @property
    def machinery(self) -> Machinery:
        """What drivers of remotes need; starts the bridge."""
        shared = self._shared
        if shared.machinery is None:
            from syncer.remotes.bridge import Bridge
            from syncer.remotes.credentials import Credentials, default_path
            from syncer.remotes.machinery import Machinery

            shared.bridge = Bridge()
            shared.bridge.start()
            named = self.credentials
            policy = self.patience
            shared.machinery = Machinery(
                shared.bridge,
                Credentials(
                    Path(named).expanduser() if named else default_path(), required=bool(named)
                ),
                connect_timeout_s=min(10.0, policy.attempt_timeout_s),
                read_timeout_s=policy.attempt_timeout_s,
                connections_max=policy.connections_max,
            )
        return shared.machinery

    @property
    def hosts(self) -> Hosts:
        """What the remotes of one host share."""
        if self._shared.hosts is None:
            from syncer.remotes.wrappers import Hosts

            self._shared.hosts = Hosts()
        return self._shared.hosts

    @property
    def patience(self) -> RemotePolicy:
        """How patient single calls of remotes are."""
        if self.policy is not None:
            return self.policy
        if self._shared.policy is None:
            from syncer.remotes.policy import RemotePolicy

            self._shared.policy = RemotePolicy()
        return self._shared.policy

    @property
    def audit(self) -> AuditLog | None:
        """The audit trail, opened when it is first asked for; None: there is to be none. Blocks."""
        if self.audited and self._shared.audit is None:
            from syncer.audit import AuditLog

            self._shared.audit = AuditLog.open(self.state / "audit", keep_days=self.audit_keep_days)
        return self._shared.audit

    @property
    def audit_begun(self) -> AuditLog | None:
        """The audit trail if anybody has asked for it."""
        return self._shared.audit

    async def open_remote(self, url: str, options: Mapping[str, str] | None = None) -> Remote:
        """A remote with retries, breaker and limits around it. Raises BadUrl, Denied."""
        from syncer.remotes import registry
        from syncer.remotes.wrappers import wrapped

        chosen: dict[str, str] = {}
        for place, given in self.remote_options:
            # A single file's tree is that of the folder above it.
            if place.startswith(url.rstrip("/")):
                chosen.update(given)
        remote = await registry.open_remote(url, chosen | dict(options or {}), self.machinery)
        made = wrapped(remote, self.patience, self.hosts)
        self._shared.remotes.add(made)
        return made

    @property
    def busy_answers(self) -> int:
        """How often the remotes that are open now have asked for patience."""
        return sum(each.statistics.errors.get("Busy", 0) for each in self._shared.remotes)

    def close(self) -> None:
        """Give everything up; blocks for some seconds at most."""
        shared = self._shared
        if shared.audit is not None:
            shared.audit.close()
            shared.audit = None
        if shared.bridge is not None:
            shared.bridge.stop()
            shared.bridge = shared.machinery = None
