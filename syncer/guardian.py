"""Looks at both ends before a byte moves, and writes nothing to find out.

All of it blocks for as long as the file systems do: for threads. What an answer costs is a handful
of system calls, whatever the size of the trees; names are checked one by one while the plan is made
(`guardian_names`), space once its sums are known (`check_space`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from syncer import linux
from syncer.guardian_mounts import Mounts, Place, absent_mount, is_within
from syncer.guardian_names import NameCheck
from syncer.guardian_quota import Left, quota_left
from syncer.guidance import Refused, Severity
from syncer.options import JobSpec, Mode, Verb
from syncer.tree import Features
from syncer.units import format_bytes

ORBIT_TYPE: Final = "fuse.orbit"  # of our own mounts


@dataclass(frozen=True, slots=True)
class End:
    """One side of a job."""

    features: Features
    path: bytes | None = None  # absolute, of a local folder or file; None: it is elsewhere
    kind: str = ""  # the URL's scheme where it is elsewhere
    mounted: bytes | None = None  # absolute, of what lies in the mount that the job works for


@dataclass(frozen=True, slots=True)
class Need:
    """What a plan brings to the destination."""

    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is in the way, or worth a word; the sentence says what to do."""

    rule: str
    severity: Severity
    sentence: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the machine says of its mounts."""

    mounts: Mounts
    fstab: bytes
    own_folders: Sequence[bytes] = ()  # Orbit's state: stores, jobs; absolute
    uid: int = field(default_factory=os.geteuid)

    @classmethod
    def look(cls, own_folders: Sequence[bytes] = ()) -> Surroundings:
        """Read them. Blocks."""
        fstab = b""
        with contextlib.suppress(OSError):
            fstab = Path("/etc/fstab").read_bytes()
        mounts = Mounts(Path("/proc/self/mountinfo").read_bytes())
        return cls(mounts, fstab, tuple(map(os.path.realpath, own_folders)))


LeftOut = Callable[[bytes], bool]


def _nothing_left_out(_: bytes) -> bool:
    return False


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _error(rule: str, sentence: str) -> Finding:
    return Finding(rule, Severity.ERROR, sentence)


def _notice(rule: str, sentence: str) -> Finding:
    return Finding(rule, Severity.NOTICE, sentence)


def _nearest(path: bytes) -> bytes:
    """The path, or the folder above it that is there."""
    while not os.path.lexists(path) and path not in {b"/", b""}:
        path = os.path.dirname(path)  # noqa: PTH120 - a path of bytes
    return path or b"/"


def _immutable(folder: bytes) -> bool:
    """Whether chattr(1) has made a folder so."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return bool(linux.inode_flags(handle) & linux.IMMUTABLE)
        finally:
            os.close(handle)
    return False


def _views(folder: bytes, mounts: Mounts) -> Iterator[tuple[bytes, Place]]:
    """What of which file systems is seen in a folder, and under which relative path."""
    here = mounts.place(folder)
    if here is not None:
        yield b"", here
    for mount in mounts.all:
        if mount.point != folder and is_within(mount.point, folder):
            relative = mount.point[len(folder.rstrip(b"/")) + 1 :]
            yield relative, Place(mount.device, mount.root)


def _seen_in(path: bytes, folder: bytes, mounts: Mounts) -> Iterator[bytes]:
    """The relative paths under which `path` is found in `folder`; both are real."""
    place = mounts.place(path)
    if place is None:
        if is_within(path, folder):
            yield path[len(folder.rstrip(b"/")) + 1 :]
        return
    for relative, view in _views(folder, mounts):
        if view.device == place.device and is_within(place.path, view.path):
            rest = place.path[len(view.path.rstrip(b"/")) + 1 :]
            yield b"/".join(part for part in (relative, rest) if part)


def _is_seen_in(path: bytes, folder: bytes, mounts: Mounts) -> bool:
    return next(_seen_in(path, folder, mounts), None) is not None


class _Inspection:
    """One look at a job."""

    def __init__(
        self, spec: JobSpec, source: End, destination: End, around: Surroundings, left_out: LeftOut
    ) -> None:
        self._options = spec.options
        self._mirror = spec.verb is Verb.SYNC and spec.options.mode is Mode.MIRROR
        self._around = around
        self._left_out = left_out
        self._source = source.path
        self._destination = destination.path
        self._mounted = (source.mounted, destination.mounted)

    def findings(self) -> Iterator[Finding]:
        """All there is to say."""
        source, destination = self._source, self._destination
        for path, what in ((source, "source"), (destination, "destination")):
            if path is not None:
                yield from self._absent(path, what)
        if destination is not None:
            yield from self._writable(destination)
        if source is not None and destination is not None:
            yield from self._loops(os.path.realpath(source), os.path.realpath(destination))
        source, destination = self._mounted
        if source is not None and destination is not None:
            # By their names: looking at them would ask the mount that waits for this job.
            yield from self._nested(os.path.normpath(source), os.path.normpath(destination))
        yield from self._own_state()

    def _absent(self, path: bytes, what: str) -> Iterator[Finding]:
        """A disk that fstab knows and that is not there: the folder under it would be used."""
        for spelling in dict.fromkeys((os.path.normpath(path), os.path.realpath(path))):
            point = absent_mount(spelling, self._around.fstab, self._around.mounts)
            if point is None:
                continue
            sentence = f"the {what} is on {_shown(point)}, where /etc/fstab has a disk that is not "
            try:
                with os.scandir(point) as entries:
                    empty = next(entries, None) is None
            except FileNotFoundError:
                empty = True
            except OSError:
                empty = False
            if empty:
                yield _error("disk-not-mounted", sentence + f"mounted: mount {_shown(point)}")
            else:
                yield _notice(
                    "disk-not-mounted",
                    sentence + "mounted; there are files all the same, which are used",
                )
            return

    def _writable(self, path: bytes) -> Iterator[Finding]:
        nearest = _nearest(path)
        try:
            real = os.path.realpath(nearest, strict=True)
        except OSError as error:
            yield _error(
                "symlink-astray",
                f"{_shown(nearest)} is a symlink that leads nowhere ({error.strerror}): mend it, or"
                " name another destination",
            )
            return
        if os.path.realpath(path) != os.path.normpath(path):
            yield _notice(
                "symlink-followed",
                f"{_shown(path)} leads through a symlink to {_shown(os.path.realpath(path))}: that "
                "is where files are written",
            )
        is_folder = os.path.isdir(real)  # noqa: PTH112 - a path of bytes
        if nearest != path and not is_folder:
            yield _error(
                "not-a-folder",
                f"{_shown(path)}: {_shown(nearest)} is no folder: name another destination",
            )
            return
        if nearest == path and not is_folder and self._source_is_folder():
            yield _error(
                "not-a-folder",
                f"{_shown(path)} is no folder, but the source is one: name another destination, or "
                "move the file away",
            )
            return
        folder = real if is_folder else os.path.dirname(real)  # noqa: PTH120
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            yield _error(
                "read-only",
                f"{_shown(folder)} is on a file system that is mounted read-only: mount it "
                "read-write, or name another destination",
            )
        elif _immutable(folder):
            yield _error(
                "immutable", f"{_shown(folder)} is marked immutable: chattr -i takes that away"
            )
        elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            yield _error(
                "not-writable",
                f"{_shown(folder)} cannot be written by this user: ask its owner, or name another "
                "destination",
            )

    def _source_is_folder(self) -> bool:
        return self._source is None or os.path.isdir(self._source)  # noqa: PTH112

    def _loops(self, source: bytes, destination: bytes) -> Iterator[Finding]:
        """The one inside the other, also by bind mounts; symlinks are resolved by now."""
        mounts = self._around.mounts
        place = mounts.place(source)
        if source == destination or (place is not None and place == mounts.place(destination)):
            yield _error("same-place", "source and destination are the same place: name another")
            return
        if not self._source_is_folder():
            return
        into = [
            relative
            for relative in _seen_in(destination, source, mounts)
            if not self._other_file_system(source, destination)
        ]
        yield from self._inside(into, list(_seen_in(source, destination, mounts)))

    def _nested(self, source: bytes, destination: bytes) -> Iterator[Finding]:
        if source == destination:
            yield _error("same-place", "source and destination are the same place: name another")
        elif is_within(destination, source):
            yield from self._inside([destination[len(source) + 1 :]], [])
        elif is_within(source, destination):
            yield from self._inside([], [source[len(destination) + 1 :]])

    def _inside(self, into: Sequence[bytes], out_of: Sequence[bytes]) -> Iterator[Finding]:
        """`into`: what the destination is called in the source; `out_of`: the other way round."""
        for relative in into:
            if self._left_out(relative):
                continue
            yield _error(
                "destination-in-source",
                f"the destination is inside the source, as {_shown(relative)}: it would be copied "
                f"into itself; leave it out with --filter '- /{_shown(relative)}/'",
            )
            return
        for relative in out_of:
            if self._mirror and not self._left_out(relative):
                yield _error(
                    "source-in-destination",
                    f"the source is inside the destination, as {_shown(relative)}: the mirror would"
                    f" delete it; protect it with --filter '- /{_shown(relative)}/'",
                )
                return
            yield _notice(
                "source-in-destination",
                f"the source is inside the destination, as {_shown(relative)}: files of the same "
                "path there would be replaced while they are read",
            )
            return

    def _other_file_system(self, source: bytes, destination: bytes) -> bool:
        if not self._options.one_file_system:
            return False
        mounts = self._around.mounts
        one, other = mounts.place(source), mounts.place(destination)
        return one is not None and other is not None and one.device != other.device

    def _own_state(self) -> Iterator[Finding]:
        """Orbit's own folders change while Orbit works."""
        mounts = self._around.mounts
        source = None if self._source is None else os.path.realpath(self._source)
        destination = None if self._destination is None else os.path.realpath(self._destination)
        for folder in self._around.own_folders:
            inside = destination is not None and _is_seen_in(destination, folder, mounts)
            if inside:
                yield _error("own-state", self._in_state(folder))
            elif self._mirror and destination is not None:
                for relative in _seen_in(folder, destination, mounts):
                    if not self._left_out(relative):
                        yield _error(
                            "own-state",
                            f"the mirror would delete Orbit's own state in {_shown(folder)}: "
                            f"protect it with --filter '- /{_shown(relative)}/'",
                        )
            if source is not None:
                yield from self._state_in_source(folder, source, destination)

    @staticmethod
    def _in_state(folder: bytes) -> str:
        return (
            f"the destination is in {_shown(folder)}, where Orbit keeps its own state: name another"
        )

    def _state_in_source(
        self, folder: bytes, source: bytes, destination: bytes | None
    ) -> Iterator[Finding]:
        for relative in _seen_in(folder, source, self._around.mounts):
            if relative and self._left_out(relative):
                continue
            mount = None if destination is None else self._around.mounts.of(destination)
            if mount is not None and mount.type == ORBIT_TYPE:
                yield _error(
                    "state-into-mount",
                    f"the source holds Orbit's own state in {_shown(folder)}, which grows with "
                    "what is copied into the mount; leave it out with "
                    f"--filter '- /{_shown(relative)}/'",
                )
            else:
                yield _notice(
                    "state-in-source",
                    f"the source holds Orbit's own state in {_shown(folder)}, which changes while "
                    f"it is copied; leave it out with --filter '- /{_shown(relative)}/'",
                )
            return


def inspect(spec: JobSpec, source: End, destination: End, around: Surroundings) -> list[Finding]:
    """Look at both ends. What the filters leave out is in nobody's way. Raises FilterError."""
    left_out: LeftOut = _nothing_left_out
    if spec.options.filters:
        from syncer.filters import Filters

        # Directories have no age that counts.
        left_out = Filters.parse(spec.options.filters, now_ns=0).leaves_out
    return list(_Inspection(spec, source, destination, around, left_out).findings())


def refuse_findings(found: Sequence[Finding]) -> list[Finding]:
    """Return the notices. Raises Refused with the sentences of all errors."""
    errors = [one.sentence for one in found if one.severity is Severity.ERROR]
    if errors:
        raise Refused("; ".join(errors))
    return list(found)


def space_problem(
    need: Need, reserve_bytes: int, *, free_bytes: int, free_files: int | None, quota: Left
) -> str:
    """What is lacking, in words; "": nothing. Pure."""
    if need.bytes + reserve_bytes > free_bytes:
        return (
            f"{format_bytes(need.bytes)} are needed and {format_bytes(reserve_bytes)} stay free "
            f"(--reserve), but only {format_bytes(free_bytes)} are free"
        )
    if free_files is not None and need.files > free_files:
        return f"{need.files} files are new, but the file system has room for {free_files} only"
    if quota.bytes is not None and need.bytes > quota.bytes:
        return (
            f"{format_bytes(need.bytes)} are needed, but your quota leaves "
            f"{format_bytes(quota.bytes)}"
        )
    if quota.files is not None and need.files > quota.files:
        return f"{need.files} files are new, but your quota leaves {quota.files}"
    return ""


def check_space(
    destination: End, need: Need, reserve_bytes: int, around: Surroundings
) -> list[Finding]:
    """Look whether a plan fits. Remotes say when they are full, not before."""
    if destination.path is None or not (need.bytes or need.files):
        return []
    folder = os.path.realpath(_nearest(destination.path))
    space = os.statvfs(folder)
    mount = around.mounts.of(folder)
    problem = space_problem(
        need,
        reserve_bytes,
        free_bytes=space.f_bavail * space.f_frsize,
        # Some file systems make room for files as they come, and say 0.
        free_files=space.f_favail if space.f_files else None,
        quota=quota_left(mount.source, around.uid) if mount else Left(),
    )
    if not problem:
        return []
    where = f"{_shown(folder)}: {problem}; free some space, or name another destination"
    return [_error("no-space", where)]


def name_check(destination: End, around: Surroundings) -> NameCheck:
    """Return what tells the names that the destination cannot hold."""
    if destination.path is None:
        return NameCheck(destination.features, destination.kind)
    folder = os.path.realpath(_nearest(destination.path))
    mount = around.mounts.of(folder)
    return NameCheck(destination.features, mount.type if mount else "")
