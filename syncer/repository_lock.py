"""Locks of a repository: small files in it that say who uses it, for what, and since when.

Storage that can only write and list whole files is enough: whoever comes writes his own lock and
then lists all. Two who come at once see each other, and both go away; a lock that was there before
stays. A lock is a lease that is renewed: one that was not for long is stale, and `orbit unlock`
removes it. Locks of processes of this machine that are provably gone are removed at once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import getpass
import json
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import trio

from blockstore.errors import OrbitError
from syncer.remotes.errors import Denied, RemoteError, Unsupported
from syncer.small_files import SmallFiles

LOCKS_FOLDER = "locks"
LEASE_S = 1_800.0  # without being renewed, a lock is stale; clocks of machines differ by minutes
RENEW_S = 300.0
_TRIES = 4  # when several come at once
_AT_ONCE_S = 2.0  # at most, before the next try


class Access(enum.StrEnum):
    """What a repository is opened for."""

    READ = "read"  # beside others that read or write
    WRITE = "write"  # beside others that read
    PRUNE = "prune"  # alone


def goes_with(one: Access, other: Access) -> bool:
    """Whether two processes may have these at a time."""
    if Access.PRUNE in {one, other}:
        return False
    return Access.READ in {one, other}


class RepositoryLocked(OrbitError):
    """Another process uses the repository: wait for it, or `orbit unlock` if it is gone."""

    def __init__(self, message: str, locks: tuple[LockInfo, ...] = ()) -> None:
        super().__init__(message)
        self.locks = locks


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from all others anywhere."""

    host: str
    user: str
    pid: int
    machine: str  # of the system's installation; "": unknown
    boot: str  # of the running system; "": unknown
    space: str  # in which `pid` is counted: containers of one host have several; "": unknown
    started: int  # ticks since boot; 0: unknown

    @classmethod
    def own(cls) -> Process:
        """This one."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            user=user,
            pid=pid,
            machine=_line("/etc/machine-id"),
            boot=_line("/proc/sys/kernel/random/boot_id"),
            space=_pid_space(),
            started=_started(pid),
        )

    def is_gone(self, own: Process) -> bool:
        """Whether this process has ended for certain, as seen by `own`."""
        if not self.boot or not own.boot:
            return False
        if self.boot != own.boot:
            # Rebooted: every installation runs at most once. Clones share an id, not a name.
            return bool(self.machine) and (self.machine, self.host) == (own.machine, own.host)
        if not self.space or self.space != own.space:
            return False
        return _started(self.pid) != self.started


def _line(path: str) -> str:
    try:
        return Path(path).read_text("ascii", errors="replace").strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> int:
    """When a process began; 0 when there is none. After its name, which may hold anything."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat.rpartition(b")")[2].split()[19])


@dataclass(frozen=True, slots=True)
class LockInfo:
    """One lock as it was found."""

    name: str  # of its file
    access: Access
    process: Process
    made: float  # seconds since 1970, by its machine's clock; likewise below
    renewed: float

    def encode(self) -> bytes:
        """What its file holds."""
        return json.dumps(
            {
                "format": 1,
                "access": self.access.value,
                "made": self.made,
                "renewed": self.renewed,
                **asdict(self.process),
            },
            indent=1,
        ).encode()

    @classmethod
    def decode(cls, name: str, data: bytes) -> LockInfo:
        """What a file says. One that makes no sense is somebody's who has all, and stale."""
        try:
            fields = json.loads(data)
            process = Process(
                host=str(fields["host"]),
                user=str(fields["user"]),
                pid=int(fields["pid"]),
                machine=str(fields["machine"]),
                boot=str(fields["boot"]),
                space=str(fields["space"]),
                started=int(fields["started"]),
            )
            access = Access(fields["access"])
            return cls(name, access, process, float(fields["made"]), float(fields["renewed"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls(name, Access.PRUNE, Process("?", "?", 0, "", "", "", 0), 0.0, 0.0)

    def is_stale(self, now: float) -> bool:
        """Whether it was not renewed for long."""
        return now - self.renewed > LEASE_S

    def __str__(self) -> str:
        made = dt.datetime.fromtimestamp(self.made, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
        who = self.process
        return f"{who.user}@{who.host} (process {who.pid}, {self.access} since {made})"


def _now() -> float:
    return dt.datetime.now(dt.UTC).timestamp()


async def list_locks(files: SmallFiles) -> list[LockInfo]:
    """All locks that are there. Raises RemoteError."""
    found = []
    for name in await files.names(LOCKS_FOLDER):
        if name.endswith(".json"):
            data = await files.read(f"{LOCKS_FOLDER}/{name}")
            if data is not None:
                found.append(LockInfo.decode(name, data))
    return found


async def remove_locks(files: SmallFiles, *, force: bool = False) -> list[LockInfo]:
    """Remove stale locks and those of processes that are gone, with `force` all; return them."""
    own, now = Process.own(), _now()
    gone = [
        lock
        for lock in await list_locks(files)
        if force or lock.is_stale(now) or lock.process.is_gone(own)
    ]
    for lock in gone:
        await files.delete(f"{LOCKS_FOLDER}/{lock.name}")
    return gone


class Lock:
    """A lock that is held."""

    def __init__(self, files: SmallFiles, info: LockInfo, label: str) -> None:
        self._files = files
        self._info = info
        self._label = label

    @property
    def _path(self) -> str:
        return f"{LOCKS_FOLDER}/{self._info.name}"

    async def confirm(self) -> None:
        """Raises RepositoryLocked when somebody has removed the lock: others may have written."""
        if await self._files.read(self._path) is None:
            raise RepositoryLocked(
                f"{self._label}: the lock of this process was removed by somebody: run it again"
            )

    async def renew(self) -> None:
        """Go on holding it, until cancelled."""
        while True:
            await trio.sleep(RENEW_S)
            # A remote that is away now may be there the next time; the lease is longer.
            with contextlib.suppress(RemoteError):
                # One that was removed is not put back: see `confirm`.
                if await self._files.read(self._path) is None:
                    return
                self._info = replace(self._info, renewed=_now())
                await self._files.write(self._path, self._info.encode())


def _in_the_way(locks: Iterable[LockInfo], own: LockInfo) -> list[LockInfo]:
    return [
        lock for lock in locks if lock.name != own.name and not goes_with(own.access, lock.access)
    ]


def _refusal(label: str, locks: list[LockInfo]) -> RepositoryLocked:
    now = _now()
    said = "; ".join(str(lock) for lock in locks)
    if all(lock.is_stale(now) for lock in locks):
        cure = "it has not been heard of for long: if it is gone, run `orbit unlock`"
    else:
        cure = "wait for it to end"
    return RepositoryLocked(f"{label} is in use by {said}: {cure}", tuple(locks))


@asynccontextmanager
async def hold_lock(files: SmallFiles, access: Access, label: str) -> AsyncIterator[Lock | None]:
    """Hold a lock for the body; None where one may only read, and nothing can be written.

    Raises RepositoryLocked, RemoteError.
    """
    own = Process.own()
    try:
        info = await _take(files, access, label, own)
    except (Denied, Unsupported):
        if access is not Access.READ:
            raise
        yield None
        return
    try:
        yield Lock(files, info, label)
    finally:
        # Also when the job was cancelled, for a moment: a lock left behind is in others' way.
        with trio.move_on_after(5.0, shield=True), contextlib.suppress(RemoteError):
            await files.delete(f"{LOCKS_FOLDER}/{info.name}")


async def _take(files: SmallFiles, access: Access, label: str, own: Process) -> LockInfo:
    for attempt in range(_TRIES):
        now = _now()
        info = LockInfo(f"{secrets.token_hex(8)}.json", access, own, now, now)
        path = f"{LOCKS_FOLDER}/{info.name}"
        await files.write(path, info.encode(), replace=False)
        try:
            locks = await list_locks(files)
            for lock in locks:
                if lock.name != info.name and lock.process.is_gone(own):
                    await files.delete(f"{LOCKS_FOLDER}/{lock.name}")
            others = _in_the_way([lock for lock in locks if not lock.process.is_gone(own)], info)
            if not others:
                return info
        except BaseException:
            with trio.move_on_after(5.0, shield=True), contextlib.suppress(RemoteError):
                await files.delete(path)
            raise
        await files.delete(path)
        if attempt == _TRIES - 1 or any(lock.made < now - _AT_ONCE_S for lock in others):
            raise _refusal(label, others)
        # They came with us, and go away as we do.
        await trio.sleep(random.uniform(0.0, _AT_ONCE_S))  # noqa: S311
    raise AssertionError("unreachable")
