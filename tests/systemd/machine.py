"""A real systemd as PID 1 of namespaces of its own, for tests of the units. Needs root.

Its /run, /var/lib and /mnt are empty and vanish with it; everything else is the machine's.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

CGROUP = Path("/sys/fs/cgroup")
TARGETS = ["sysinit", "basic", "shutdown", "local-fs", "remote-fs", "multi-user", "machine"]

# Runs as PID 1 until it becomes systemd. The hierarchies are mounted anew in the new cgroup
# namespace: systemd then sees its own cgroup as the root.
BOOT = r"""
set -eu
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/systemd
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /mnt
if [ "$1" = unified ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    mkdir -p /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
fi
exec /lib/systemd/systemd --system --unit=machine.target --log-target=console \
    --show-status=no --log-level=info
"""


class Machine:
    """Boots on entry, is killed whole on exit. `log` holds what systemd wrote."""

    def __init__(self, units: Path, log: Path) -> None:
        self._units = units
        self.log = log
        for name in TARGETS:
            text = f"[Unit]\nDescription={name}\nDefaultDependencies=no\n"
            units.joinpath(f"{name}.target").write_text(text)

    def __enter__(self) -> Self:
        unified = CGROUP.joinpath("cgroup.controllers").exists()
        roots = [CGROUP] if unified else [CGROUP / "systemd", CGROUP / "unified"]
        self._cgroups = [root / f"orbit-test-{os.getpid()}" for root in roots]
        for cgroup in self._cgroups:
            cgroup.mkdir(exist_ok=True)
        joining = "".join(f"echo $$ >{cgroup}/cgroup.procs;" for cgroup in self._cgroups)
        unshare = "exec unshare -m -p -f -C -i -u --kill-child --propagation private"
        kind = "unified" if unified else "hybrid"
        script = f'{joining} {unshare} /bin/bash -c "$0" boot {kind}'
        env = {"PATH": os.environ["PATH"], "container": "lxc"}
        env["SYSTEMD_UNIT_PATH"] = str(self._units)
        with self.log.open("wb") as output:
            self._unshare = subprocess.Popen(
                ["/bin/bash", "-c", script, BOOT],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._until(lambda: self.run("systemctl", "is-active", "machine.target")[0] == 0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if pid := self._init():
            os.kill(pid, signal.SIGKILL)  # the rest of its pid namespace follows
        self._unshare.kill()
        self._unshare.wait()
        for cgroup in self._cgroups:
            for inner in sorted(cgroup.glob("**/"), reverse=True):
                _eventually(partial(_removed, inner), partial("{} is in use".format, inner))

    def _init(self) -> int | None:
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        try:
            return int(children.read_text().split()[0])
        except (OSError, IndexError):
            return None

    def run(self, *command: str, timeout_s: float = 60) -> tuple[int, str]:
        """Run a command inside; its exit code and output."""
        pid = self._init()
        if pid is None:
            return 255, "no machine"
        enter = ["nsenter", "-t", str(pid), "-m", "-p", "--"]
        ran = subprocess.run(
            [*enter, *command], capture_output=True, text=True, check=False, timeout=timeout_s
        )
        return ran.returncode, ran.stdout + ran.stderr

    def must(self, *command: str) -> str:
        """Run a command inside that has to succeed; its output."""
        code, output = self.run(*command)
        assert code == 0, f"{command}: {output}\n{self.log.read_text()[-4000:]}"
        return output

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.must("systemctl", "show", "--value", "-p", name, unit).strip()

    def wait_for_restart(self, unit: str, old_pid: int) -> int:
        """Wait until a unit is active with another main process; its pid."""
        self._until(
            lambda: (
                self.show(unit, "ActiveState") == "active"
                and int(self.show(unit, "MainPID")) not in (0, old_pid)
            )
        )
        return int(self.show(unit, "MainPID"))

    def override(self, unit: str, text: str) -> None:
        """Add settings to a unit, as `systemctl edit` does."""
        folder = self._units / f"{unit}.service.d"
        folder.mkdir()
        folder.joinpath("test.conf").write_text(text)
        self.must("systemctl", "daemon-reload")

    def copy_unit(self, unit: str, name: str) -> None:
        """Make a second unit of the same content."""
        text = self._units.joinpath(f"{unit}.service").read_text()
        self._units.joinpath(f"{name}.service").write_text(text)
        self.must("systemctl", "daemon-reload")

    def _until(self, true: Callable[[], bool]) -> None:
        _eventually(true, lambda: f"{self._unshare.poll()} {self.log.read_text()[-4000:]}")


def _eventually(true: Callable[[], bool], why: Callable[[], str]) -> None:
    # systemd tells nobody outside of its namespaces: there is nothing to wait on but asking.
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up, why()
        time.sleep(0.05)


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
