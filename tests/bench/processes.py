"""Commands and servers with hard limits, and what they cost: seconds, processor time, memory."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mount.harness import abort_connection, clear_mount, is_mounted

READY_LIMIT_S = 60.0
STOP_LIMIT_S = 120.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class StepFailed(Exception):
    """A measurement could not be finished; the message says which command and what it said."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended well."""

    seconds: float
    cpu_s: float  # of it and its children
    output: str
    code: int = 0


def run(
    *command: str | os.PathLike[str],
    limit_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    codes: Sequence[int] = (0,),
    stderr: bool = True,
) -> Finished:
    """Run a command to its end. Raises StepFailed at another exit code and at the limit."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with subprocess.Popen(
        [os.fspath(part) for part in command],
        cwd=cwd,
        env=None if env is None else {**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if stderr else subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            output = process.communicate(timeout=limit_s)[0].decode("utf-8", "replace")
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise StepFailed(f"{_words(command)}: not done after {limit_s:g} s") from None
            raise
    seconds = time.perf_counter() - started
    if process.returncode not in codes:
        raise StepFailed(f"{_words(command)}: ended with {process.returncode}\n{output[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Finished(seconds, cpu_s, output, process.returncode)


def _words(command: Sequence[str | os.PathLike[str]]) -> str:
    return " ".join(os.fspath(part) for part in command)[:200]


# --- what a running process has used -------------------------------------------------------------


def _stat_fields(pid: int) -> list[str]:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2 :].split()  # from the state on: field 3 of proc(5)


def _family(leader: int) -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = _stat_fields(int(entry.name))
            if int(fields[3]) == leader:
                yield int(entry.name), fields


def family_cpu_s(leader: int) -> float:
    """Processor seconds of a session's processes so far, those that have ended included."""
    return sum(
        sum(int(field) for field in fields[11:15]) / _TICKS_PER_S for _, fields in _family(leader)
    )


def family_rss_bytes(leader: int) -> int:
    """Resident memory of a session's processes."""
    pages = sum(int(fields[21]) for _, fields in _family(leader))
    return pages * resource.getpagesize()


def end(leader: int, mount: Path) -> None:
    """Kill a session, and let go whoever waits for its mount: also threads of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    # A killed process does not end as long as one of its threads waits for its own mount.
    # Where the kernel's control files are not mounted, a forced unmount aborts as well.
    abort_connection(mount)
    if os.geteuid() == 0 and is_mounted(mount):
        subprocess.run(
            ["umount", "--force", mount], capture_output=True, timeout=STOP_LIMIT_S, check=False
        )


# --- servers -------------------------------------------------------------------------------------


class Server:
    """A process that serves a mount until it is told to stop."""

    def __init__(self, command: Sequence[str | Path], mount: Path, log: Path) -> None:
        """Start it and return when the mount answers. Raises StepFailed."""
        self._mount = mount
        mount.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._await(lambda: is_mounted(mount), READY_LIMIT_S, "mounted")
            run("stat", "-f", mount, limit_s=READY_LIMIT_S)
        except BaseException:
            self.clear()
            raise

    @property
    def pid(self) -> int:
        """Of the session's leader."""
        return self._process.pid

    def _await(self, done: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait for a change of the mount table or for the end of the process."""
        deadline = time.monotonic() + limit_s
        ended = os.pidfd_open(self._process.pid)
        poll = select.poll()
        with open("/proc/self/mounts") as table:
            poll.register(table, select.POLLPRI | select.POLLERR)
            poll.register(ended, select.POLLIN)
            try:
                while not done():
                    left_s = deadline - time.monotonic()
                    if left_s < 0:
                        raise StepFailed(f"{self._mount}: not {what} after {limit_s:g} s")
                    events = poll.poll(left_s * 1000)
                    table.seek(0)
                    table.read()
                    if any(fd == ended for fd, _ in events) and not done():
                        raise StepFailed(f"{self._mount}: server ended\n{self._said()}")
            finally:
                os.close(ended)

    def _said(self) -> str:
        return self._log.read_text("utf-8", "replace")[-2000:]

    def stop(self) -> None:
        """Unmount and wait for the end: what is unwritten is written."""
        tool = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        run(*tool, self._mount, limit_s=STOP_LIMIT_S)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.clear()
            raise StepFailed(f"{self._mount}: the server does not end") from None

    def clear(self) -> None:
        """Leave nothing behind."""
        end(self._process.pid, self._mount)
        self._process.wait()
        clear_mount(self._mount)
