"""What the project has set itself: one entry for each number of its target table."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.systems import OURS

SMALL_BLOCKS = f"{OURS}-128k"  # with a block size of 128 KiB


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio to `peer` or to our own row `before`: at least `limit` times as fast or as small.

    Without these a value of ours: a rate (at least `limit`) or a cost (at most).
    """

    group: str
    row: str
    limit: float
    peer: str = ""
    before: str = ""
    than: str = "the first time"  # what `before` is
    rate: bool = False
    unit: str = "s"
    scale: float = 1.0  # of the unit, in seconds or bytes
    ours: str = OURS

    def met(self, measured: float) -> bool:
        """Whether it is good enough."""
        least = self.peer or self.before or self.rate
        return measured >= self.limit if least else measured <= self.limit

    def text(self) -> str:
        """The target in words."""
        if self.peer or self.before:
            return f"at least {self.limit:.3g} of {self.peer or self.than}"
        if self.rate:
            return f"at least {self.limit / self.scale:,.0f}{self.unit}"
        return f"at most {self.limit / self.scale:g} {self.unit}"

    def show(self, measured: float) -> str:
        """A measured value in the target's unit."""
        if self.peer or self.before:
            return f"{measured:.2f}"
        if self.rate:
            return f"{measured / self.scale:,.0f}{self.unit}"
        return f"{measured / self.scale:.3g} {self.unit}"


def _against(group: str, rows: str, **limits: float) -> list[Target]:
    names = {"passthrough": "passthrough_ll", "juicefs_zstd": "juicefs-zstd"}
    return [
        Target(group, row, limit, names.get(peer, peer))
        for row in rows.split()
        for peer, limit in limits.items()
    ]


_KIB, _MIB = 1024.0, 1024.0 * 1024


def _of_remotes(kind: str) -> list[Target]:
    moved = {"unit": "MiB", "scale": _MIB}
    found = []
    for group in ("remote", "far"):
        peers = ["rclone-small"] + (["sshfs"] if kind == "sftp" else [])
        found += [
            *(Target(group, f"{kind}-{row}-moved", 2 * _MIB, **moved) for row in ("one", "known")),
            Target(group, f"{kind}-known-trips", 1, unit="round trip"),
            *(
                Target(group, f"{kind}-{row}", 1.0, peer)
                for row in ("one", "known")
                for peer in peers
            ),
            Target(group, f"{kind}-ten-moved", 10 * _MIB, **moved),
            Target(group, f"{kind}-ten-moved", 1.3 * _MIB, **moved, ours=SMALL_BLOCKS),
            Target(group, f"{kind}-ten", 1.0, "rclone-small"),
            *(
                Target(group, f"{kind}-seq", 2.0 if group == "far" else 1.0, peer)
                for peer in ("rclone", "rclone-fast")
            ),
            *(Target(group, f"{kind}-find", 1.0, peer) for peer in ("rclone", "rclone-fast")),
            # Two requests more find out what the top is.
            *([Target(group, "s3-find-trips", 1.05, unit="a page")] if kind == "s3" else []),
            Target(group, f"{kind}-find-again-trips", 0, unit="requests"),
        ]
    return [
        *found,
        Target("remote", f"{kind}-again", 1.0, before=f"{kind}-own", than="our own stored file"),
        Target("far", f"{kind}-again-moved", 0, **moved),
        *(Target("far", f"{kind}-copy", 3.0, peer) for peer in ("rclone", "rclone-fast")),
        Target("remote-stat", f"{kind}-busy", 0.5, before=f"{kind}-idle", than="the idle median"),
    ]


TARGETS: list[Target] = [
    *_against("seq", "read-random read-text", passthrough=1.0, juicefs_zstd=0.8),
    *_against("seq", "write-random write-text", passthrough=0.7, juicefs_zstd=0.7),
    Target("random", "overwrite", 1.8),
    Target("random", "growth", 64 * _KIB, unit="KiB", scale=_KIB),
    *_against("random", "read-4k", passthrough=0.5),
    *_against("random", "read-128k", passthrough=1.0),
    *(
        Target("again", f"{step}-{kind}", 1.0, before=f"first-{kind}")
        for step in ("again", "inserted")
        for kind in ("random", "text")
    ),
    *(
        Target("again", f"{step}-{kind}-growth", 0.01, unit="%", scale=0.01)
        for step in ("again", "inserted")
        for kind in ("random", "text")
    ),
    *_against("small", "create read remove", passthrough=0.7, juicefs=2.0, rclone=2.0),
    *(
        Target("ingest", key, 2.0, peer)
        for key in ("new", "known", "mixed")
        for peer in ("borg zstd,1", "restic")
    ),
    *(
        Target("sizes", key, 1.0, peer, ours=ours)
        for key in ("sqlite", "releases")
        for ours, peer in (
            (OURS, "borg zstd,1"),
            ("ghostfs zstd,3", "borg zstd,3"),
            ("ghostfs zstd,3", "restic"),
            ("ghostfs zstd,3", "casync"),
        )
    ),
    *(Target("scale", f"mount-{key}", 1.0) for key in ("few", "many")),
    *(
        Target("scale", f"{what}-{key}", 150 * _MIB, unit="MiB", scale=_MIB)
        for what in ("rss", "rss-found")
        for key in ("few", "many")
    ),
    Target("find", "find", 60_000, rate=True, unit="/s"),
    *_against(
        "tree",
        "untar git-add git-commit git-status copy grep remove",
        passthrough=0.7,
        juicefs=2.0,
        rclone=2.0,
    ),
    *(target for kind in ("sftp", "s3") for target in _of_remotes(kind)),
    Target("remote-scale", "project", 1.0),
    Target("remote-scale", "objects-start", 1.0),
    Target("remote-scale", "cached-start", 1.0),
    Target("remote-scale", "objects-requests", 0, unit="requests"),
    Target("remote-scale", "cached-requests", 0, unit="requests"),
    Target("sync-copy", "one-warm", 1.0, "cp -a"),
    Target("sync-copy", "small-warm", 1 / 1.5, "cp -a"),
    *(
        Target("sync-copy", f"{key}-warm", 1.0, peer)
        for key in ("one", "small")
        for peer in ("rsync", "rclone")
    ),
    *(
        Target("sync-again", f"again-{key}", 1.0, peer)
        for key in ("cold", "warm")
        for peer in ("rsync", "rclone")
    ),
    *(
        Target("sync-backup", key, 1.0, peer)
        for key in (
            *("new", "changed", "same", "same-size", "restore"),
            *("small", "small-size", "small-same", "small-restore"),
        )
        for peer in ("borg zstd,1", "restic")
    ),
    *(
        Target("sync-far", key, 1.0, peer)
        for key in ("sftp", "s3")
        for peer in ("rclone", "rclone-fast")
    ),
    *(
        Target("sync-beside", f"{job}-{what}-p99", 1 / 3, before=f"idle-{what}-p99", than="idle")
        for what in ("stat", "read")
        for job in ("in", "out", "local")
    ),
]
