"""The options of copy, sync, backup, restore, verify and push, shared by `orbit` and `orbit-ctl`.

They end up as the JSON of a job (`job_of`), which whoever runs it reads; nothing of that is
imported here. The design's spelling works, too: `--source A --dest B` for the two places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

# As they are written, and the rule that each of them is. They are rewritten before click sees them,
# because the order among all of them counts.
_RULES: Final = {
    "--filter": "",
    "-f": "",
    "--include": "+ ",
    "--exclude": "- ",
    "--include-from": "include-from ",
    "--exclude-from": "exclude-from ",
    "--filter-from": "merge ",
    "--min-size": "min-size ",
    "--max-size": "max-size ",
    "--min-age": "min-age ",
    "--max-age": "max-age ",
}
_GITIGNORE: Final = "gitignore"
_ALGORITHMS: Final = frozenset({"blake3", "sha256", "sha1", "md5", "xxhash", "xxh3", "crc32c"})


def rewritten(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with every kind of rule as `--filter RULE`, in their order.

    `--checksum blake3`, the design's spelling, becomes `--checksum`. Raises UsageError.
    """
    found: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*found, word, *rest]
        name, equals, value = word.partition("=")
        if name in _RULES:
            if not equals:
                if not rest:
                    raise click.UsageError(f"{name} needs a value")
                value = rest.pop(0)
            found += ["--filter", _RULES[name] + value]
        elif word == "--gitignore":
            found += ["--filter", _GITIGNORE]
        elif name == "--checksum" and (equals or (rest and rest[0].lower() in _ALGORITHMS)):
            algorithm = value if equals else rest.pop(0)
            if algorithm.lower() != "blake3":
                raise click.UsageError(f"--checksum {algorithm}: contents are compared by blake3")
            found.append("--checksum")
        else:
            found.append(word)
    return found


class VerbCommand(click.Command):
    """A command whose rules keep their order."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite, then parse."""
        return super().parse_args(ctx, rewritten(args))


def _share(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """`100` files, or `20%` of them."""
    if value is None:
        return None
    try:
        if value.endswith("%"):
            share = float(value[:-1]) / 100
            if 0 <= share < 1:
                return share
            if share == 1:
                raise click.BadParameter("all of them: write --force")
        elif value.isdigit():
            return int(value)
    except ValueError:
        pass
    raise click.BadParameter(f"{value!r}: write a number of files, or a share like 20%")


def _bytes(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    from cli import units

    try:
        return None if value is None else units.parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _nanoseconds(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    from cli import units

    try:
        return None if value is None else round(units.parse_duration(value) * 10**9)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _flag(name: str, help_: str, *names: str) -> Callable[[F], F]:
    """A flag that is left out of the job unless it is given."""
    both = f"--{name}/--no-{name}"
    key = name.replace("-", "_")
    return click.option(both, *names, key, default=None, help=help_)


_PLACES: Final = (
    click.argument("places", nargs=-1, metavar="[SRC] [DST]"),
    click.option("--source", help="SRC, spelled out."),
    click.option("--dest", "--destination", "destination", help="DST, spelled out."),
)
_PLACE: Final = (click.argument("places", metavar="PATH", callback=lambda _, __, value: (value,)),)
_WHAT: Final = (
    click.option(
        "--archive", "-a", is_flag=True,
        help="Keep modes, times, owners, xattrs, ACLs, hard links, symlinks, specials.",
    ),
    click.option("--recursive/--no-recursive", "-r", default=None, help="On unless switched off."),
    click.option(
        "--filter", "filters", multiple=True, metavar="RULE",
        help="`+ PATTERN`, `- PATTERN`, …: the first that matches decides. See filter-test. In one"
        " order with --include, --exclude, --filter-from, --include-from, --exclude-from,"
        " --gitignore, --min-size, --max-size, --min-age, --max-age.",
    ),
    click.option(
        "--symlinks", type=click.Choice(["keep", "follow", "skip"]),
        help="Default: keep. Follow: only inside of SRC.",
    ),
    _flag("specials", "Pipes, sockets and devices, too."),
    _flag("hard-links", "Names of one file stay names of one file."),
    _flag("one-file-system", "Stay on SRC's file system.", "-x"),
)  # fmt: skip
_KEPT: Final = (
    _flag("modes", "Permission bits."),
    _flag("times", "Modification times, to the nanosecond."),
    _flag("owners", "Owner and group, by name where it is known."),
    _flag("numeric-ids", "Owners by number."),
    _flag("xattrs", "Extended attributes and ACLs."),
)
_COMPARED: Final = (
    click.option("--checksum", is_flag=True, help="Compare contents, not sizes and times."),
    click.option("--ignore-existing", is_flag=True, help="What is there stays as it is."),
    click.option(
        "--mtime-window", "mtime_window_ns", callback=_nanoseconds, metavar="DURATION",
        help="Times that differ by less are equal.",
    ),
)  # fmt: skip
_SYNCED: Final = (
    click.option(
        "--mode", type=click.Choice(["sync", "update", "mirror"]),
        help="sync: replace what differs. update: but not what is newer. mirror: and delete what"
        " SRC has not. Default: sync.",
    ),
    click.option("--delete", is_flag=True, help="The same as --mode mirror."),
    click.option(
        "--delete-max", callback=_share, metavar="N|P%",
        help="Delete no more than this. Default: 10% of DST's files.",
    ),
    click.option(
        "--force", is_flag=True, help="Delete however many, also where files failed to copy."
    ),
    click.option("--trash", metavar="DIR", help="In DST: takes what would be deleted or replaced."),
)  # fmt: skip
_MOVED: Final = (
    click.option(
        "--smart", is_flag=True,
        help="Configuration first, media last; large files move by what changed in them.",
    ),
    click.option("--parallel", type=click.IntRange(0, 1024), metavar="N", help="Files at a time."),
    click.option(
        "--bandwidth-limit", "--bwlimit", "bandwidth", metavar="RATE",
        help="`50M`, or a timetable: `08:00-18:00 5M, 2M on metered`.",
    ),
    click.option(
        "--compression", type=click.Choice(["zstd", "lz4", "none"]), help="Of what moves."
    ),
    click.option("--verify", is_flag=True, help="Read the destination back (exit code 3)."),
    click.option("--resume/--no-resume", default=None, help="Go on in partly copied files."),
    click.option("--fail-fast", is_flag=True, help="End with the first failure."),
    click.option(
        "--durable/--no-durable", default=None,
        help="Files are on the disk before they get their names.",
    ),
    click.option(
        "--reserve", "reserve_bytes", callback=_bytes, metavar="SIZE",
        help="What stays free at DST. Default: 64M.",
    ),
)  # fmt: skip
_SNAPSHOTS: Final = (
    click.option("--name", help="Of the snapshot. Default: SRC's name and the time."),
    click.option("--tag", "tags", multiple=True, help="May be given several times."),
    click.option("--expires", metavar="DURATION", help="It may be pruned after that."),
)
_PUSHED: Final = (
    click.option(
        "--on-conflict", type=click.Choice(["refuse", "ours", "theirs", "both"]),
        help="Where the remote has changed meanwhile: leave it and say so (the default), replace"
        " it, drop the local change, or push ours beside it as NAME.conflict-HOST-TIME.",
    ),
)  # fmt: skip
_REMOTES: Final = (
    click.option(
        "--option", "remote_options", multiple=True, metavar="NAME=VALUE",
        help="Of the remotes, such as endpoint=URL; source.NAME and dest.NAME are one end's.",
    ),
)  # fmt: skip
_QUEUED: Final = (
    click.option("--schedule", metavar="WHEN", help="@daily, `0 3 * * *`, `every 6h`, …"),
    click.option("--priority", type=int, help="Higher ones first."),
    click.option("--after", type=int, multiple=True, metavar="JOB", help="Wait until it is done."),
    click.option("--detach", is_flag=True, help="Return the job's number; it runs by itself."),
)

_SET: Final = (
    click.option(
        "--bandwidth-limit", "--bwlimit", "bandwidth", metavar="RATE",
        help="A rate or timetable; off: none. Also while it runs.",
    ),
    click.option("--priority", type=int, help="Higher ones first."),
    click.option(
        "--after", type=int, multiple=True, metavar="JOB",
        help="Wait until this is done, too. Only before it has begun.",
    ),
)  # fmt: skip

GROUPS: Final = {
    "copy": (_PLACES, _WHAT, _KEPT, _COMPARED, _MOVED, _REMOTES, _QUEUED),
    "sync": (_PLACES, _WHAT, _KEPT, _COMPARED, _SYNCED, _MOVED, _REMOTES, _QUEUED),
    "backup": (_PLACES, _WHAT, _COMPARED[:1], _SNAPSHOTS, _MOVED, _REMOTES, _QUEUED),
    "restore": (_PLACES, _WHAT, _KEPT, _COMPARED, _SYNCED, _MOVED, _REMOTES, _QUEUED),
    "verify": (_PLACES, _WHAT, _KEPT, _COMPARED[1:], _MOVED[1:3], _REMOTES, _QUEUED),
    "push": (_PLACE, _KEPT[:3], _PUSHED, _MOVED[1:3], _QUEUED),
}
_ARCHIVE: Final = ("modes", "times", "owners", "xattrs", "hard_links", "specials")
# What is not an option of the job itself.
_OF_JOB: Final = frozenset({"schedule", "priority", "after"})
_NOT_SENT: Final = frozenset({"places", "source", "destination", "archive", "delete", "detach"})


def verb_options(verb: str) -> Callable[[F], F]:
    """Add all options of a verb to a command; they arrive as keyword arguments."""

    def add(function: F) -> F:
        for group in reversed(GROUPS[verb]):
            for option in reversed(group):
                function = option(function)
        return function

    return add


def set_options(function: F) -> F:
    """What can be changed of a job, as keyword arguments for `set_of`."""
    for option in reversed(_SET):
        function = option(function)
    return function


def set_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return what is to be changed. Raises UsageError for nothing."""
    if found := {name: value for name, value in given.items() if value not in (None, ())}:
        return found
    raise click.UsageError("set what? Give --bandwidth-limit, --priority or --after")


def running(function: F) -> F:
    """The options of whatever runs; they say how it is shown, but for --dry-run."""
    for option in reversed(
        (
            click.option("--dry-run", "-n", is_flag=True, help="Say what would be done, only."),
            click.option("--verbose", "-v", is_flag=True, help="Name every file, and how."),
            click.option("--quiet", "-q", is_flag=True, help="Say nothing but what went wrong."),
            click.option("--json", "as_json", is_flag=True, help="One JSON object a line."),
            click.option("--explain", is_flag=True, help="Say what was chosen, and why."),
        )
    ):
        function = option(function)
    return function


def job_of(verb: str, given: dict[str, Any], *, destination: str = "") -> dict[str, Any]:
    """Return a job's JSON from what the command line gave.

    `destination`: where there is one without being told. Raises UsageError.
    """
    from cli.places import absolute, repository

    source, target = _places(verb, given)
    options = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        # 0 is said, too: --delete-max 0, --reserve 0.
        if name not in _NOT_SENT | _OF_JOB and value not in (None, (), "") and value is not False
    }
    # A switch that is on unless told otherwise.
    options |= {
        name: False
        for name, value in given.items()
        if value is False and name not in _NOT_SENT and name in _SWITCHES
    }
    if given.get("archive"):
        options |= {name: True for name in _ARCHIVE if given.get(name) is not False}
    if given.get("delete"):
        if options.get("mode", "mirror") != "mirror":
            raise click.UsageError(f"--delete and --mode {options['mode']} contradict each other")
        options["mode"] = "mirror"
    job: dict[str, Any] = {"verb": verb, "source": absolute(source), "options": options}
    target = target or destination
    if target:
        job["destination"] = absolute(repository(target) if verb == "backup" else target)
    for name in _OF_JOB:
        if value := given.get(name):
            job[name] = list(value) if isinstance(value, tuple) else value
    return job


_SWITCHES: Final = frozenset(
    {
        "recursive", "specials", "hard_links", "one_file_system", "modes", "times", "owners",
        "numeric_ids", "xattrs", "resume", "durable",
    }
)  # fmt: skip


def _places(verb: str, given: dict[str, Any]) -> tuple[str, str]:
    places = list(given["places"])
    source = given.get("source") or (places.pop(0) if places else "")
    target = given.get("destination") or (places.pop(0) if places else "")
    if places:
        raise click.UsageError(f"too many places: {', '.join(places)}")
    if not source:
        raise click.UsageError(f"{verb} what? Give SRC, or --source SRC")
    if not target and verb in {"copy", "sync", "restore"}:
        raise click.UsageError(f"{verb} {source} where to? Give DST, or --dest DST")
    return source, target
