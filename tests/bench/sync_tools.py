"""The programs that copy: ours and its peers, each as one command from start to end."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.peers import Peers
from tests.bench.processes import Finished, run
from tests.bench.systems import OURS

ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Orbit:
    """The `orbit` of this checkout, with its state and cache below `home`."""

    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *words: str | Path) -> Finished:
        """Run it to its end. Raises StepFailed."""
        homes = {
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
        }
        command = [sys.executable, "-m", "cli.orbit", *words]
        return run(*command, limit_s=LIMIT_S, cwd=ROOT, env={**homes, **self.environment})


class Copier(ABC):
    """Makes a local folder like another one."""

    name: str

    def __init__(self, folder: Path, peers: Peers) -> None:
        self.folder = folder / self.name  # for whatever it keeps
        self.peers = peers

    @abstractmethod
    def copy(self, source: Path, target: Path) -> Finished:
        """`target` may be there, with what an earlier copy left."""


class Cp(Copier):
    """`cp -a`."""

    name = "cp -a"

    def copy(self, source: Path, target: Path) -> Finished:
        """The target is not there yet."""
        return run("cp", "-a", source, target, limit_s=LIMIT_S)


class Rsync(Copier):
    """`rsync -a`."""

    name = "rsync"

    def copy(self, source: Path, target: Path) -> Finished:
        """As anybody does."""
        return run("rsync", "-a", f"{source}/", f"{target}/", limit_s=LIMIT_S)


class RcloneCopy(Copier):
    """`rclone copy` with its defaults: contents and times."""

    name = "rclone"

    def copy(self, source: Path, target: Path) -> Finished:
        """No configuration of the user's."""
        copy = [self.peers.rclone(), "copy", "--config", "/dev/null"]
        return run(*copy, source, target, limit_s=LIMIT_S)


class OrbitCopy(Copier):
    """`orbit copy -a`, which keeps more than `rsync -a`: xattrs, ACLs, hard links."""

    name = OURS

    def copy(self, source: Path, target: Path) -> Finished:
        """As a user would."""
        return Orbit(self.folder)("copy", "--archive", "--quiet", source, target)


COPIERS: tuple[type[Copier], ...] = (Cp, Rsync, RcloneCopy, OrbitCopy)


def warmed(copier: Copier, folder: Path) -> None:
    """Let the program itself be in memory, as after any earlier use: copy a folder of one file."""
    tiny = folder / "tiny"
    tiny.mkdir(exist_ok=True)
    (tiny / "file").write_bytes(b"x")
    copied = folder / "tiny-copy"
    copier.copy(tiny, copied)
    remove(copied)


def remove(folder: Path) -> None:
    """With everything in it, however much that is."""
    run("rm", "-rf", "--", folder, limit_s=LIMIT_S)


def compare(left: Path, right: Path) -> None:
    """Names and contents are the same. Raises StepFailed."""
    run("diff", "-rq", left, right, limit_s=LIMIT_S)


def until_stored(bench: Bench, done: Finished) -> float:
    """The seconds of a command that has just ended, and those until a power cut would not hurt."""
    return done.seconds + run("sync", "-f", bench.disk.root, limit_s=LIMIT_S).seconds
