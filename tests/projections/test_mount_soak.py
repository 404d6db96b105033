"""A day of small operations on projections, compressed: the daemon's memory, open files and threads
stay as they are.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.projections.mounts import IMPATIENT, MIB, content, on, orbit_ctl, until, within

# Small caches, so that they are full after the warm-up.
SMALL = (
    IMPATIENT
    + """
cache_bytes_max = "64 MiB"
cache_free_floor_bytes = 0
[store]
cache_bytes_max = "1 MiB"
[memory]
inodes_max = 1000
"""
)
RSS_GROWTH_MAX = 32 * MIB
DESCRIPTORS_MORE_MAX = 12
THREADS_MORE_MAX = 6


@dataclass(frozen=True)
class Use:
    """What a process holds."""

    rss_bytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Use:
        proc = Path(f"/proc/{pid}")
        fields = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        return cls(
            rss_bytes=int(fields["VmRSS"].split()[0]) << 10,
            descriptors=len(os.listdir(proc / "fd")),
            threads=int(fields["Threads"]),
        )


class Day:
    """What goes on, and what should be seen."""

    def __init__(self, far, site, seed: int) -> None:
        self.far = far
        self.site = site
        self.rng = random.Random(seed)
        self.files: dict[str, bytes] = {}
        self.ours: set[str] = set()
        self.number = 0
        for n in range(60):
            self._put(f"d{n % 4}/f{n}")
        self.large = content("large", 30 * MIB)
        site.put("large", self.large)
        self.outages = 0

    def _put(self, name: str) -> None:
        self.number += 1
        self.files[name] = content(self.number, self.rng.choice((0, 10, 5_000, 100_000)))
        self.site.put(name, self.files[name])

    def rounds(self, count: int) -> None:
        """So many small operations."""
        actions = (
            self.listing, self.reading, self.reading, self.reading, self.part, self.missing,
            self.remote_change, self.own_file, self.own_file, self.local_file, self.asking,
        )  # fmt: skip
        for number in range(count):
            self.rng.choice(actions)()
            if number % 100 == 99:
                self.outage()

    def listing(self) -> None:
        folder = f"d{self.rng.randrange(4)}"
        shown = {f"{folder}/{name}" for name in os.listdir(self.far.far / folder)}
        assert {name for name in self.files if name.startswith(f"{folder}/")} <= shown

    def reading(self) -> None:
        name = self.rng.choice(sorted(self.files))
        assert (self.far.far / name).read_bytes() == self.files[name]

    def part(self) -> None:
        offset = self.rng.randrange(len(self.large))
        with open(self.far.far / "large", "rb") as file:
            file.seek(offset)
            assert file.read(5_000) == self.large[offset : offset + 5_000]

    def missing(self) -> None:
        assert not os.path.exists(self.far.far / f"d0/nothing{self.rng.randrange(1_000)}")

    def remote_change(self) -> None:
        name = self.rng.choice(sorted(self.files))
        if self.rng.random() < 0.5:
            self._put(name)
        else:
            self.site.delete(name)
            del self.files[name]
            self.number += 1
            self._put(f"{os.path.dirname(name)}/g{self.number}")
        self.far.call("refresh", path=f"/far/{os.path.dirname(name)}")

    def own_file(self) -> None:
        """Made, moved and taken away in a projection that takes changes."""
        self.number += 1
        name = f"d{self.rng.randrange(4)}/own{self.number}"
        (self.far.far / name).write_bytes(b"o" * 3_000)
        os.rename(self.far.far / name, self.far.far / f"{name}.moved")
        assert (self.far.far / f"{name}.moved").read_bytes() == b"o" * 3_000
        os.unlink(self.far.far / f"{name}.moved")

    def local_file(self) -> None:
        folder = self.far.daemon.mount / "local"
        folder.mkdir(exist_ok=True)
        for n in range(5):
            (folder / f"{n}").write_bytes(self.rng.randbytes(2_000))
        if self.rng.random() < 0.3:
            shutil.rmtree(folder)

    def asking(self) -> None:
        call = self.rng.choice(("evict", "residency", "warm", "status", "projections"))
        if call in ("status", "projections"):
            self.far.daemon.client.get(f"/v1/{call}", 10.0)
        else:
            self.far.call(call, paths=[f"/far/d{self.rng.randrange(4)}"])

    def outage(self) -> None:
        """Every connection is lost, and for a moment there is none to be had."""
        self.outages += 1
        with self.site.away(), contextlib.suppress(OSError):
            for name in sorted(self.files)[:3]:
                (self.far.far / name).read_bytes()
        until(self._all_well, "no recovery")

    def _all_well(self) -> bool:
        try:
            for folder in range(4):
                self.far.call("refresh", path=f"/far/d{folder}")
            return all((self.far.far / n).read_bytes() == d for n, d in self.files.items())
        except OSError:
            return False


def live(far, site, *, seed: int, warm_up: int, rounds: int) -> None:
    day = Day(far, site, seed)
    day.rounds(warm_up)
    before = Use.of(far.daemon.pid)
    day.rounds(rounds)
    after = Use.of(far.daemon.pid)
    assert after.rss_bytes - before.rss_bytes < RSS_GROWTH_MAX, (before, after)
    assert after.descriptors - before.descriptors <= DESCRIPTORS_MORE_MAX, (before, after)
    assert after.threads - before.threads <= THREADS_MORE_MAX, (before, after)
    assert day.outages
    assert within(30.0, *orbit_ctl(far, "diff", str(far.far)))[0] == 0
    far.daemon.check_clean(data=True)
    far.stop()


@on("sftp")
def test_a_few_minutes(site, projector):
    far = projector(site, mode="cow", config=SMALL, block_size="128 KiB")
    live(far, site, seed=1, warm_up=150, rounds=250)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_a_day(site, projector, seed):
    far = projector(site, mode="cow", config=SMALL, block_size="128 KiB")
    live(far, site, seed=seed + 10, warm_up=2_000, rounds=40_000)
