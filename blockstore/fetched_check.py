"""Checking the fetched series. Damaged blocks are no damage: they are dropped, to be had again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from blockstore.check import CheckResult
from blockstore.disk import Disk
from blockstore.errors import StorageFailed
from blockstore.fetched_index import FetchedIndex
from blockstore.fetched_writer import FetchedWriter
from blockstore.ids import ChunkId, Location, PackId, pack_number
from blockstore.packfile import read_seal, scan
from blockstore.reader import PackFiles


class SeriesFiles(Protocol):
    """What a check needs of the open series."""

    folder: Path
    index: FetchedIndex
    writer: FetchedWriter
    files: PackFiles

    def locate(self, ids: Iterable[ChunkId]) -> dict[ChunkId, Location]:
        """Return where resident blocks should lie."""


def check_fetched(disk: Disk, series: SeriesFiles) -> Iterator[CheckResult]:
    """Yield what is wrong with the files of the cache; nothing may be evicted meanwhile."""
    with series.index.still():
        found = series.index.integrity()
    cure = "stop the program and remove that file: it is rebuilt from the packs"
    yield CheckResult(
        "fetched-index",
        "fetched.db is a sound database",
        not found,
        tuple(f"{problem}; {cure}" for problem in found),
    )
    border = series.writer.next_pack
    names = sorted(disk.listdir(series.folder))
    # In the order in which a pack passes through them.
    known = {series.writer.open_pack, *series.writer.ready_packs(), *series.index.packs}
    strays = []
    for name in names:
        number = pack_number(name)
        if number is None:
            strays.append(f"{name} is not a pack: move it out of this folder")
        elif number < border and number not in known:
            strays.append(
                f"{name} is left from a failed removal, or of another store: restart the "
                "program, or remove it"
            )
    yield CheckResult(
        "fetched-packs", "every file in fetched/ is a pack of the cache", not strays, tuple(strays)
    )


def damaged_blocks(series: SeriesFiles, pack: PackId) -> dict[ChunkId, Location]:
    """Read a sealed pack; return those of its resident blocks that are not as they were stored."""
    try:
        with series.files.using(pack) as file:
            size, salt = file.size(), series.files.salt(pack)
            scanned = [entry for item in scan(file.pread, size, salt) for entry in item.entries]
            listed = read_seal(file.pread, size, salt) or []
    except (FileNotFoundError, StorageFailed):
        return {}  # readers find out block by block
    intact = {entry.offset for entry in scanned}
    places = {entry.id: entry.location(pack) for entry in listed if entry.offset not in intact}
    current = series.locate(places)
    return {name: place for name, place in places.items() if current.get(name) == place}
