"""What drivers of remotes are given by whoever opens them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from syncer.remotes.bridge import Bridge
from syncer.remotes.credentials import Credentials


@dataclass(frozen=True, slots=True)
class Machinery:
    """Shared by all remotes of a process. `home` and `environment` are replaced in tests."""

    bridge: Bridge
    credentials: Credentials = field(default_factory=Credentials)
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0  # of one request, from asking to the last byte
    connections_max: int = 16  # of one remote, and with them its requests at a time
    home: Path = field(default_factory=Path.home)  # where .ssh and .aws are
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    system_ssh: Path = Path("/etc/ssh")  # ssh_config, ssh_known_hosts

    @property
    def known_hosts(self) -> tuple[Path, ...]:
        """Files of trusted host keys; the first is where new ones are added."""
        return (self.home / ".ssh" / "known_hosts", self.system_ssh / "ssh_known_hosts")

    @property
    def ssh_config(self) -> tuple[Path, ...]:
        """OpenSSH client configurations, the first value found counts."""
        return (self.home / ".ssh" / "config", self.system_ssh / "ssh_config")
