"""Group on copying many small files to S3 and SFTP over a link with round trips of 40 ms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from tests.bench import work
from tests.bench.bench import Bench, Group, Row
from tests.bench.peers import Peers
from tests.bench.processes import Finished, run
from tests.bench.remote_reads import ROUND_TRIP_S
from tests.bench.remote_systems import rclone_environment
from tests.bench.served import Place, Served, served
from tests.bench.sync_local import scratch
from tests.bench.sync_tools import LIMIT_S, Orbit
from tests.bench.systems import OURS

CONNECTIONS = 16
_SMALL = 4096
_PEERS_SHARE = 0.05


class _Sender(ABC):
    """A program that copies a local folder to a place."""

    def __init__(self, name: str, peers: Peers, home: Path) -> None:
        self.name = name
        self.peers = peers
        self.home = home

    @abstractmethod
    def send(self, source: Path, place: Place, folder: str) -> Finished:
        """To a new folder of the place."""


class _Rclone(_Sender):
    def __init__(self, name: str, peers: Peers, home: Path, *options: str) -> None:
        super().__init__(name, peers, home)
        self._options = options

    def send(self, source: Path, place: Place, folder: str) -> Finished:
        """As many at a time as ours."""
        many = ["--transfers", str(CONNECTIONS), "--checkers", str(CONNECTIONS)]
        if place.kind == "sftp":
            many += ["--sftp-connections", str(CONNECTIONS)]
        command = [self.peers.rclone(), "copy", "--config", "/dev/null", *many, *self._options]
        target = f"place:{place.path}/{folder}"
        return run(*command, source, target, limit_s=LIMIT_S, env=rclone_environment(place))


class _Orbit(_Sender):
    def send(self, source: Path, place: Place, folder: str) -> Finished:
        """SFTP takes one connection, whatever the number of files at a time."""
        many = ["--parallel", str(CONNECTIONS)]
        orbit = Orbit(self.home, place.environment)
        return orbit("copy", "--quiet", *many, source, place.url(folder))


def _senders(bench: Bench, home: Path) -> list[_Sender]:
    peers = bench.peers
    plain = ("--sftp-disable-hashcheck", "--s3-no-check-bucket", "--s3-no-head", "--inplace")
    return [
        _Rclone("rclone", peers, home),
        _Rclone("rclone-fast", peers, home, *plain),
        _Orbit(OURS, peers, home),
    ]


def _far(bench: Bench) -> None:
    folders = bench.size(100, 20)
    few = max(1, round(folders * _PEERS_SHARE))
    with scratch(bench) as scratched, served(bench) as what, what.links(ROUND_TRIP_S / 2) as links:
        sources = {}
        for count in {folders, few}:
            sources[count] = scratched / f"source-{count}"
            work.call("create", sources[count], count, 100, _SMALL, 1, limit_s=LIMIT_S)
        senders = [each for each in _senders(bench, scratched) if bench.wants(each.name)]
        for number, sender in enumerate(bench.in_turn(senders)):
            with bench.attempt(sender.name):
                count = folders if sender.name == OURS else few
                for kind, link in links.items():
                    folder, before = f"to-{number}", link.settled()
                    done = sender.send(sources[count], link.place, folder)
                    note = bench.note
                    note(kind, sender.name, done.seconds, amount=100 * count, cpu_s=done.cpu_s)
                    passed = link.settled() - before
                    trips = passed.requests if kind == "s3" else passed.turns
                    note(f"{kind}-trips", sender.name, trips, amount=100 * count)
                    _check(what, kind, folder, 100 * count)


def _check(what: Served, kind: str, folder: str, files: int) -> None:
    sizes = what.sizes(kind, folder)
    assert sizes == [_SMALL] * files, f"{len(sizes)} files of {sum(sizes)} bytes, wanted {files}"


SYNC_FAR = Group(
    "sync-far",
    "orbit copy of files of 4 KiB to remotes with round trips of 40 ms, 16 at a time "
    "(full run: 10,000 files)",
    tuple(
        row
        for kind, label in (("sftp", "SFTP"), ("s3", "S3"))
        for row in (
            Row(kind, f"{label}: files", "/s"),
            Row(f"{kind}-trips", f"{label}: round trips for each", "each"),
        )
    ),
    _far,
    ("rclone", "rclone-fast", OURS),
    note="rclone: --transfers 16, over SFTP at most 16 connections, where ours has one; "
    "rclone-fast: without its checks afterwards, and written in place. rclone copies one in 20, "
    "since it takes minutes for all: rates are compared. Round trips over S3 are "
    "requests; over SFTP, how often the client spoke after the server had.",
)
