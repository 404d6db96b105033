"""The log of reads: written whole, bounded, never waited for."""

from __future__ import annotations

import json
from pathlib import Path

from ghostd.access_log import AccessLog
from ghostd.read_policy import AccessRecord, Range
from tests.ghostd.world import jumping
from tests.projections.test_projected import DATA, URL, Setting


def record(n: int) -> AccessRecord:
    return AccessRecord(float(n), 7, n, 10, True, (Range(n, n + 1),))


def test_every_record_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AccessLog(path)
    for n in range(1_000):
        log.add(record(n))
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["offset"] for line in lines] == list(range(1_000))
    assert lines[3] == {
        "time_s": 3.0, "file": 7, "offset": 3, "length": 10, "hit": True, "decided": [[3, 4]],
    }  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_long_log_is_moved_aside_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AccessLog(path, bytes_max=1_000)
    for n in range(200):
        log.add(record(n))
    log.close()
    assert {each.name for each in tmp_path.iterdir()} == {"log", "log.1"}
    for each in tmp_path.iterdir():
        assert each.stat().st_size < 1_200
        for line in each.read_text().splitlines():
            json.loads(line)


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "no" / "log")
    for n in range(20_000):
        log.add(record(n))
    log.close()
    assert log.dropped


@jumping
async def test_reads_of_projected_files_are_logged() -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    found: list[AccessRecord] = []
    world.projected.fetcher._log_access = found.append
    async with world.running():
        await world.project(URL)
        await world.content(b"/r/f", 100, 50)
        await world.content(b"/r/f", 200, 50)
    world.close()
    assert [(r.offset, r.length, r.hit) for r in found] == [(100, 50, False), (200, 50, True)]
