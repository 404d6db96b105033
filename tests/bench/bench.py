"""What every group of measurements is given: the disk, the inputs, the systems, the record."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tests.bench.disk import Disk
from tests.bench.inputs import Inputs
from tests.bench.peers import Peers
from tests.bench.processes import StepFailed
from tests.bench.record import Failure, Run, Sample
from tests.bench.systems import SYSTEMS, System


class HasName(Protocol):
    """A system or a store."""

    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=HasName)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a group's table. `show`: s, ms, MB/s, /s, MiB, KiB, times, or each."""

    key: str
    label: str
    show: str = "s"


@dataclass(frozen=True, slots=True)
class Group:
    """Measurements that belong together."""

    key: str
    title: str
    rows: Sequence[Row]
    run: Callable[[Bench], None]
    systems: Sequence[str] = ()
    note: str = ""


class Bench:
    """One run. Rounds go over all systems in turn, so that noise hits all alike."""

    def __init__(
        self, folder: Path, disk: Disk, run: Run, *, rounds: int, only: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.disk = disk
        self.peers = Peers(folder)
        self.inputs = Inputs(folder, self.peers)
        self.record = run
        self.rounds = rounds
        self.quick = run.quick
        self._only = only
        self._broken: set[tuple[str, str]] = set()
        self._group = ""
        self._round = 0

    def size(self, full: int, quick: int) -> int:
        """A size that depends on how long the run may take."""
        return quick if self.quick else full

    def measure(self, group: Group) -> None:
        """Run a group."""
        self._group, self._round = group.key, 0
        started = time.monotonic()
        say(f"== {group.key}: {group.title}")
        with self.attempt("*"):
            group.run(self)
        self.record.finished.append(group.key)
        say(f"== {group.key}: {time.monotonic() - started:.0f} s")

    # --- systems ---------------------------------------------------------------------------------

    def systems(self, names: Sequence[str]) -> list[System]:
        """Those of the run, none of them started; `cleared` is the counterpart."""
        return [SYSTEMS[name](self.disk, self.peers) for name in names if self.wants(name)]

    def wants(self, name: str) -> bool:
        """Whether a system takes part in this run."""
        return not self._only or name in self._only

    @contextlib.contextmanager
    def cleared(self, systems: Sequence[System]) -> Iterator[None]:
        """Whatever happens, nothing of the systems is left behind."""
        try:
            yield
        finally:
            for system in systems:
                system.clear()

    def in_turn(self, systems: Sequence[Named]) -> Iterator[Named]:
        """Every system once a round: A B C, A B C, … A system that has failed is left out."""
        for number in range(self.rounds):
            self._round = number
            for system in systems:
                if (self._group, system.name) not in self._broken:
                    yield system

    @contextlib.contextmanager
    def attempt(self, system: System | str) -> Iterator[None]:
        """A failure is told and recorded, and ends this system's part in the group."""
        name = system if isinstance(system, str) else system.name
        try:
            yield
        except (StepFailed, OSError, AssertionError) as error:
            message = (str(error) or repr(error)).replace(f"{self.folder}/", "")
            say(f"   {name} FAILED: {message}")
            self._broken.add((self._group, name))
            said = [line for line in message.splitlines() if line.strip()]
            short = " … ".join(dict.fromkeys(line[:300] for line in (said[0], said[-1])))
            self.record.failures.append(Failure(self._group, name, short))
            if isinstance(system, System):
                system.clear()

    # --- values ----------------------------------------------------------------------------------

    def note(
        self,
        row: str,
        system: System | str,
        cost: float,
        *,
        amount: float = 1.0,
        cpu_s: float | None = None,
    ) -> None:
        """Record a value."""
        name = system if isinstance(system, str) else system.name
        sample = Sample(self._group, row, name, self._round, cost, amount, cpu_s)
        self.record.samples.append(sample)
        busy = "" if cpu_s is None else f" cpu {cpu_s:.2f} s"
        say(f"   {self._round} {name:15} {row:24} {cost:12,.3f} for {amount:,.0f}{busy}")

    def timed(
        self, row: str, system: System, work: Callable[[], float], *, amount: float = 1.0
    ) -> None:
        """Record the seconds that `work` returns, and its daemon's processor time meanwhile."""
        before = system.cpu_s()
        seconds = work()
        self.note(row, system, seconds, amount=amount, cpu_s=system.cpu_s() - before)

    def timed_stored(
        self, row: str, stored: str, system: System, work: Callable[[], float]
    ) -> None:
        """Record the seconds that `work` returns, and those until it is stored."""
        before = system.cpu_s()
        seconds = work()
        self.note(row, system, seconds, cpu_s=system.cpu_s() - before)
        seconds += system.settle()
        self.note(stored, system, seconds, cpu_s=system.cpu_s() - before)


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)
