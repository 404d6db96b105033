"""What goes together: options of a job against each other and against both ends. Pure.

A table of rules; each has a name, a test and a sentence. An *error* is refused before anything is
looked at; a *notice* is printed, and the job does what the sentence says. So nothing that was asked
for is dropped, or weakened, in silence.
"""

from __future__ import annotations

import enum
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from syncer.options import JobSpec, Mode, OnConflict, Options, Symlinks, Verb
from syncer.remotes.errors import RemoteError
from syncer.tree import Features

CODECS: Final = ("zstd", "lz4", "none")

_WRITES: Final = frozenset({Verb.COPY, Verb.SYNC, Verb.RESTORE, Verb.PUSH})


class Severity(enum.Enum):
    """What follows."""

    ERROR = "error"  # the job is refused
    NOTICE = "notice"  # the user is told


class Refused(RemoteError):
    """The job makes no sense, or would do harm; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A rule that applies."""

    rule: str
    severity: Severity
    sentence: str


@dataclass(frozen=True, slots=True)
class Case:
    """What rules look at."""

    spec: JobSpec
    source: Features
    destination: Features

    @property
    def options(self) -> Options:
        """The job's."""
        return self.spec.options

    @property
    def writes(self) -> bool:
        """Whether files are made at the destination, as files."""
        return self.spec.verb in _WRITES

    @property
    def both_local(self) -> bool:
        """Whether nothing goes over a wire."""
        return self.source.local and self.destination.local

    @property
    def mirror(self) -> bool:
        """Whether anything is deleted."""
        return self.spec.verb is Verb.SYNC and self.options.mode is Mode.MIRROR


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the table."""

    name: str
    severity: Severity
    applies: Callable[[Case], bool]
    sentence: str | Callable[[Case], str]  # what is wrong, and what to do


def _bad_bandwidth(case: Case) -> str:
    from syncer.bandwidth import BadRate, parse_timetable

    try:
        parse_timetable(case.options.bandwidth)
    except BadRate as error:
        return f"--bandwidth-limit: {error}"
    return ""


def _bad_filters(case: Case) -> str:
    if not case.options.filters:
        return ""
    from syncer.filter_patterns import FilterError
    from syncer.filters import Filters

    try:
        Filters.parse(case.options.filters, now_ns=0)
    except FilterError as error:
        return str(error)
    return ""


def _bad_expiry(case: Case) -> str:
    from syncer.units import parse_duration

    try:
        if case.options.expires:
            parse_duration(case.options.expires)
    except ValueError as error:
        return f"--expires: {error}"
    return ""


def _trash_outside(case: Case) -> bool:
    trash = case.options.trash
    return bool(trash) and (
        trash.startswith("/")
        or ".." in trash.split("/")
        or posixpath.normpath(trash) == "."  # the destination itself
    )


def _not_kept(case: Case) -> str:
    """What the destination has no place for, of what is wanted and the source has."""
    options, source, destination = case.options, case.source, case.destination
    wanted = (
        ("permissions", options.modes and source.mode, destination.mode),
        ("owners", options.owners and source.owner, destination.owner or destination.local),
        ("extended attributes and ACLs", options.xattrs and source.xattrs, destination.xattrs),
        ("hard links (each name becomes a file)", options.hard_links and source.hard_links,
         destination.hard_links),
        ("empty directories", options.recursive and source.directories, destination.directories),
    )  # fmt: skip
    return ", ".join(what for what, asked, kept in wanted if asked and not kept)


def _negative(options: Options) -> bool:
    numbers = (options.parallel, options.mtime_window_ns, options.reserve_bytes)
    return min(numbers) < 0 or (options.delete_max is not None and options.delete_max < 0)


def _no_mtimes(case: Case) -> bool:
    return case.destination.mtime_resolution_ns == 0 or not case.options.times


def _of_files(options: Options) -> str:
    """Options that say how files are copied one by one."""
    given = (
        ("--fail-fast does nothing", options.fail_fast),
        ("--no-resume does nothing", not options.resume),
        ("--no-durable does nothing", not options.durable),
    )
    return ", ".join(words for words, there in given if there)


ERROR: Final = Severity.ERROR
NOTICE: Final = Severity.NOTICE

RULES: Final[tuple[Rule, ...]] = (
    # What makes no sense.
    Rule(
        "destination-missing",
        ERROR,
        lambda case: (
            case.spec.verb in {Verb.COPY, Verb.SYNC, Verb.RESTORE} and not case.spec.destination
        ),
        "a destination is missing: name where to",
    ),
    Rule(
        "destination-read-only",
        ERROR,
        lambda case: case.writes and not case.destination.write,
        lambda case: (
            "the destination cannot be written: "
            + (case.destination.why_not or "this kind of place is only read")
        ),
    ),
    Rule(
        "negative-number",
        ERROR,
        lambda case: _negative(case.options),
        "numbers of --parallel, --delete-max, --reserve and times are not below zero",
    ),
    Rule("bandwidth-invalid", ERROR, lambda case: bool(_bad_bandwidth(case)), _bad_bandwidth),
    Rule("filters-invalid", ERROR, lambda case: bool(_bad_filters(case)), _bad_filters),
    Rule("expires-invalid", ERROR, lambda case: bool(_bad_expiry(case)), _bad_expiry),
    Rule(
        "compression-unknown",
        ERROR,
        lambda case: bool(case.options.compression) and case.options.compression not in CODECS,
        lambda case: (
            f"--compression {case.options.compression} is not known: there are {', '.join(CODECS)}"
        ),
    ),
    Rule(
        "mode-without-sync",
        ERROR,
        lambda case: case.options.mode is not Mode.SYNC and case.spec.verb is not Verb.SYNC,
        lambda case: f"--mode {case.options.mode} belongs to sync: `{case.spec.verb}` has no modes",
    ),
    Rule(
        "mirror-without-recursive",
        ERROR,
        lambda case: case.mirror and not case.options.recursive,
        "--mode mirror deletes what the source has not, and without --recursive all in its "
        "directories would count as that: add --recursive, or take another mode",
    ),
    Rule(
        "update-without-times",
        ERROR,
        lambda case: (
            case.spec.verb is Verb.SYNC and case.options.mode is Mode.UPDATE and _no_mtimes(case)
        ),
        "--mode update asks which file is newer, but the destination does not get the times of the "
        "source's files: use --mode sync, with --checksum to compare contents",
    ),
    Rule(
        "backup-follows-symlinks",
        ERROR,
        lambda case: case.spec.verb is Verb.BACKUP and case.options.symlinks is Symlinks.FOLLOW,
        "a backup keeps symlinks as they are, so that a restore brings them back: take --symlinks "
        "follow away, or give --symlinks skip, and back up what they lead to by itself",
    ),
    Rule(
        "trash-outside",
        ERROR,
        _trash_outside,
        lambda case: (
            f"--trash {case.options.trash}: name a folder inside the destination, relative"
            " to it, such as .trash"
        ),
    ),
    Rule(
        "trash-without-rename",
        ERROR,
        lambda case: bool(case.options.trash) and case.writes and not case.destination.rename,
        "--trash moves files aside, which this destination cannot do: take --trash away, or keep "
        "old states by a backup",
    ),
    # What has no effect.
    Rule(
        "delete-without-mirror",
        NOTICE,
        lambda case: (
            (case.options.force or case.options.delete_max is not None) and not case.mirror
        ),
        "nothing is deleted, so --delete-max and --force do nothing: they belong to "
        "`sync --mode mirror`",
    ),
    Rule(
        "force-over-delete-max",
        NOTICE,
        lambda case: case.mirror and case.options.force and case.options.delete_max is not None,
        "--force deletes however many: --delete-max does nothing beside it",
    ),
    Rule(
        "trash-without-writing",
        NOTICE,
        lambda case: bool(case.options.trash) and not case.writes,
        lambda case: f"`{case.spec.verb}` replaces no files: --trash does nothing",
    ),
    Rule(
        "compression-does-nothing",
        NOTICE,
        lambda case: case.options.compression in CODECS[:-1] and not case.destination.chunked,
        lambda case: (
            f"--compression {case.options.compression} does nothing: "
            + (
                "both ends are local folders, nothing goes over a wire"
                if case.both_local
                else "the destination keeps files as they are"
            )
        ),
    ),
    Rule(
        "compression-of-daemon",
        NOTICE,
        lambda case: (
            case.options.compression in CODECS
            and case.destination.chunked
            and not (case.spec.verb is Verb.BACKUP and bool(case.spec.destination))
        ),
        lambda case: (
            f"--compression {case.options.compression} does nothing: the daemon's store has a codec"
            " of its own, `compression` under [store] in its configuration"
        ),
    ),
    Rule(
        "backup-does-by-itself",
        NOTICE,
        lambda case: case.spec.verb is Verb.BACKUP and bool(_of_files(case.options)),
        lambda case: (
            f"{_of_files(case.options)}: a backup goes on after files that cannot be read, never "
            "stores again what is there, and is recorded when all of it is on the disk"
        ),
    ),
    Rule(
        "bandwidth-local",
        NOTICE,
        lambda case: bool(case.options.bandwidth) and case.both_local,
        "both ends are local: the bandwidth limit spares no wire, it only slows the disks",
    ),
    Rule(
        "smart-moves-whole-files",
        NOTICE,
        lambda case: (
            case.options.smart
            and case.writes
            and not (case.destination.chunked or case.destination.local)
        ),
        "--smart orders the queue here, but files that changed are moved whole: only stores and "
        "local folders take changed chunks",
    ),
    Rule(
        "smart-without-moving",
        NOTICE,
        lambda case: case.options.smart and case.spec.verb is Verb.VERIFY,
        "verify moves nothing: --smart does nothing",
    ),
    Rule(
        "verify-twice",
        NOTICE,
        lambda case: case.options.verify and case.spec.verb is Verb.VERIFY,
        "the verb verify reads everything anyway: --verify adds nothing",
    ),
    Rule(
        "numeric-ids-without-owners",
        NOTICE,
        lambda case: case.options.numeric_ids and not case.options.owners,
        "owners are not kept, so --numeric-ids does nothing: add --owners or --archive",
    ),
    Rule(
        "checksum-of-existing",
        NOTICE,
        lambda case: case.options.checksum and case.options.ignore_existing,
        "--ignore-existing leaves alone what is there: --checksum compares nothing",
    ),
    Rule(
        "update-of-existing",
        NOTICE,
        lambda case: case.options.mode is Mode.UPDATE and case.options.ignore_existing,
        "--ignore-existing leaves alone what is there: older files are not updated",
    ),
    Rule(
        "window-with-checksum",
        NOTICE,
        lambda case: case.options.checksum and case.options.mtime_window_ns > 0,
        "--checksum compares contents: the window for times does nothing",
    ),
    Rule(
        "snapshot-options",
        NOTICE,
        lambda case: (
            case.spec.verb is not Verb.BACKUP
            and bool(case.options.name or case.options.tags or case.options.expires)
        ),
        lambda case: (
            f"`{case.spec.verb}` makes no snapshot: --name, --tag and --expires do nothing"
        ),
    ),
    Rule(
        "conflict-without-push",
        NOTICE,
        lambda case: (
            case.spec.verb is not Verb.PUSH and case.options.on_conflict is not OnConflict.REFUSE
        ),
        "--on-conflict belongs to push: it does nothing here",
    ),
    Rule(
        "one-file-system-of-remote",
        NOTICE,
        lambda case: case.options.one_file_system and not case.source.local,
        "the source is no local folder: --one-file-system does nothing",
    ),
    Rule(
        "durable-elsewhere",
        NOTICE,
        lambda case: (
            not case.options.durable
            and case.writes
            and not (case.destination.local or case.destination.chunked)
        ),
        "a remote decides itself when data is on its disks: --no-durable does nothing",
    ),
    # What is done otherwise than one might think.
    Rule(
        "compared-by-size",
        NOTICE,
        lambda case: (
            case.writes
            and case.options.mode is not Mode.UPDATE
            and _no_mtimes(case)
            and not (case.options.checksum or case.options.ignore_existing)
        ),
        "the destination does not get the times of the source's files: files of equal size count "
        "as equal; add --checksum to compare contents",
    ),
    Rule(
        "checksum-over-wire",
        NOTICE,
        lambda case: (
            case.options.checksum
            and not case.options.ignore_existing
            and not case.both_local
            and not case.destination.chunked
        ),
        "--checksum reads files over the wire to compare them, where neither side knows their "
        "checksums",
    ),
    Rule(
        "verify-over-wire",
        NOTICE,
        lambda case: case.options.verify and case.writes and not case.destination.local,
        "--verify reads back over the wire all that was written: about twice the traffic",
    ),
    Rule(
        "verify-from-memory",
        NOTICE,
        lambda case: (
            case.options.verify
            and case.writes
            and not case.options.durable
            and case.destination.local
        ),
        "--no-durable with --verify: what is read back may come from memory, and says nothing of "
        "the disk",
    ),
    Rule(
        "not-kept",
        NOTICE,
        lambda case: case.writes and bool(_not_kept(case)),
        lambda case: (
            f"the destination has no place for: {_not_kept(case)}; a backup keeps everything"
        ),
    ),
    Rule(
        "owners-without-privilege",
        NOTICE,
        lambda case: (
            case.options.owners
            and case.writes
            and case.destination.local
            and not case.destination.owner
        ),
        "files of other users become yours: only root gives files to others, and some file systems "
        "(FAT, SMB) know no owners",
    ),
    Rule(
        "symlinks-impossible",
        NOTICE,
        lambda case: (
            case.writes
            and case.options.symlinks is Symlinks.KEEP
            and case.source.symlinks
            and not case.destination.symlinks
        ),
        "the destination has no symlinks: each one is reported as failed; --symlinks follow copies "
        "what they lead to, --symlinks skip leaves them out",
    ),
    Rule(
        "specials-impossible",
        NOTICE,
        lambda case: (
            case.writes
            and case.options.specials
            and case.source.specials
            and not case.destination.specials
        ),
        "the destination has no pipes, sockets and devices: each one is reported as failed; "
        "--no-specials leaves them out",
    ),
    Rule(
        "push-looks-before",
        NOTICE,
        lambda case: case.spec.verb is Verb.PUSH and not case.destination.conditional,
        "this remote cannot refuse a write if the file changed: it is looked at just before, so a "
        "change in the same moment would be overwritten",
    ),
    Rule(
        "mirror-without-limit",
        NOTICE,
        lambda case: case.mirror and case.options.force and not case.options.trash,
        "--force deletes at the destination whatever the source has not, however many; --trash DIR "
        "would keep it",
    ),
)


def check(spec: JobSpec, source: Features, destination: Features) -> list[Advice]:
    """Return what applies: errors first, each in the table's order.

    `destination`: where there is none (verify of a snapshot), the source's again.
    """
    case = Case(spec, source, destination)
    found = [
        Advice(rule.name, rule.severity, _sentence(rule, case))
        for rule in RULES
        if rule.applies(case)
    ]
    return sorted(found, key=lambda advice: advice.severity is Severity.NOTICE)


def _sentence(rule: Rule, case: Case) -> str:
    return rule.sentence if isinstance(rule.sentence, str) else rule.sentence(case)


def refuse_errors(found: Iterable[Advice]) -> list[Advice]:
    """Return the notices. Raises Refused with the sentences of all errors."""
    advice = list(found)
    errors = [one.sentence for one in advice if one.severity is Severity.ERROR]
    if errors:
        raise Refused("; ".join(errors))
    return advice
