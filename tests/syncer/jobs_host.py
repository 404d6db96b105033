"""A machine whose clocks stand still and whose processes live as the test says."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass, field

from syncer.jobs_holder import Host


@dataclass
class Machine:
    """What the processes of one machine share."""

    wall: int = 1_767_225_600 * 10**9  # 2026-01-01 00:00 UTC
    boot: int = 5 * 10**9
    living: set[str] = field(default_factory=set)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def pass_s(self, seconds: float) -> None:
        self.wall += int(seconds * 10**9)
        self.boot += int(seconds * 10**9)

    def process(self) -> Process:
        return Process(self)


class Process(Host):
    """One process of a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.name = f"p{next(machine.numbers)}"
        machine.living.add(self.name)

    def wall_ns(self) -> int:
        return self.machine.wall

    def boot_ns(self) -> int:
        return self.machine.boot

    def zone(self) -> dt.tzinfo:
        return dt.UTC

    def new_holder(self) -> str:
        return f"{self.name}:{next(self.machine.numbers)}"

    def gone(self, holder: str) -> bool:
        return holder.split(":", maxsplit=1)[0] not in self.machine.living

    def die(self) -> None:
        self.machine.living.discard(self.name)
