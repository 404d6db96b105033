"""The commands of `orbit-ctl` about remote trees.

Imports here are what `--help` costs; the rest is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from cli.client import Client
    from cli.orbit_ctl import Session
    from cli.render_projections import Shown

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130  # as a shell says of a program that Ctrl-C ended

QUESTION_TIMEOUT_S: Final = 10.0
CALL_TIMEOUT_S: Final = 3_600.0
_PROJECT_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.25
_CHANGES_PAGE: Final = 5_000
_CHANGES_SHOWN: Final = 10  # before it is asked whether to drop them

URLS = """\b
URLs:
  file:///PATH                      a folder of this machine
  sftp://USER@HOST:PORT/PATH        ssh's keys, agent, config and known_hosts
  smb://USER@HOST/SHARE/PATH
  s3://BUCKET/PREFIX                --option endpoint=URL region=NAME anonymous=true …
  az://CONTAINER/PREFIX  gs://BUCKET/PREFIX
  http(s)://HOST/PATH/              a listing of files, or one file
  fsspec+PROTOCOL://…               whatever fsspec reads
  snapshot:NAME[/PATH]              a snapshot; with --mode cow a clone to write into
"""

T = TypeVar("T")
Answer = dict[str, Any]


def _parsed(_: click.Context, param: click.Parameter, value: str) -> float:
    """Read a duration (seconds) or size (bytes); its ValueError is told to the user."""
    from cli import units

    parse = units.parse_duration if param.name == "ttl_s" else units.parse_bytes
    try:
        return parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


class Ways:
    """One command's way to the daemon: paths resolved, answers rendered."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.client = session.client()
        self._mount: str | None = None

    @property
    def mount(self) -> str:
        """Where the daemon's mount is."""
        if self._mount is None:
            answer = self.call(lambda client: client.get("/v1/status", QUESTION_TIMEOUT_S))
            self._mount = str(answer["mount"])
        return self._mount

    @property
    def shown(self) -> Shown:
        """The renderer."""
        from cli.render_projections import Shown

        return Shown(self.mount)

    def path(self, path: str) -> str:
        """Return a path of the command line as the API wants it; ends the program if it cannot."""
        from cli.client import CallFailed
        from cli.paths import OutsideMount, under_mount
        from orbit_paths import path_to_text

        try:
            return path_to_text(under_mount(os.fsencode(path), os.fsencode(self.mount)))
        except OutsideMount as error:
            hint = "name a path below the mount, absolute or from the current directory"
            self._session.fail(CallFailed(str(error), hint))

    def paths(self, paths: Sequence[str]) -> list[str]:
        """Return several."""
        return [self.path(each) for each in paths]

    def call(self, call: Callable[[Client], T]) -> T:
        """Make a call; ends the program when it fails."""
        from cli.client import CallFailed

        try:
            return call(self.client)
        except CallFailed as failure:
            self._session.fail(failure)

    def post(self, url: str, body: dict[str, object], timeout_s: float = CALL_TIMEOUT_S) -> Answer:
        """Make a call with a body."""
        return self.call(lambda client: client.post(url, body, timeout_s))

    def show(self, answer: Answer, render: Callable[[Answer], str]) -> None:
        """Print an answer."""
        click.echo(json.dumps(answer) if self._session.as_json else render(answer))

    @property
    def as_json(self) -> bool:
        """Programs read what is printed."""
        return self._session.as_json


_PATH = click.argument("path")
_PATHS = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
_DETACH = click.option("--detach", is_flag=True, help="Return at once; see `orbit-ctl works`.")


@click.command(epilog=URLS)
@click.argument("url")
@_PATH
@click.option(
    "--mode",
    type=click.Choice(["ro", "cow", "rw"]),
    default="ro",
    show_default=True,
    help="Read-only, or changes that stay here (see diff, revert, push), or are pushed.",
)
@click.option(
    "--ttl",
    "ttl_s",
    callback=_parsed,
    metavar="TIME",
    default="60s",
    show_default=True,
    help="How old a listing may be before the remote is asked again.",
)
@click.option(
    "--block-size",
    "block_bytes",
    callback=_parsed,
    metavar="SIZE",
    default="1M",
    show_default=True,
    help="What is fetched at least: 128K, 256K, 512K or 1M.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the remote, such as region=eu-west-1; owner=UID:GID; never a secret. Repeatable.",
)
@click.pass_obj
def project(
    session: Session,
    url: str,
    path: str,
    mode: str,
    ttl_s: float,
    block_bytes: int,
    options: Sequence[str],
) -> None:
    """Show the remote tree at URL as PATH. Kept over restarts.

    PATH is a new name, or an empty directory, below the mount. Returns at once, however large the
    tree is: directories are listed when they are looked at, blocks fetched when they are read.
    """
    values: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{option!r}: write KEY=VALUE", param_hint="--option")
        values[name] = value
    ways = Ways(session)
    body: dict[str, object] = {
        "url": url,
        "path": ways.path(path),
        "mode": mode,
        "ttl_s": ttl_s,
        "block_bytes": block_bytes,
        "options": values,
    }
    ways.show(ways.post("/v1/project", body, _PROJECT_TIMEOUT_S), ways.shown.project)


@click.command()
@_PATH
@click.option("--force", is_flag=True, help="Also where local changes are lost by it.")
@click.pass_obj
def unproject(session: Session, path: str, *, force: bool) -> None:
    """Detach the projection at PATH. The remote keeps everything."""
    ways = Ways(session)
    body: dict[str, object] = {"path": ways.path(path), "force": force}
    ways.show(ways.post("/v1/unproject", body, _PROJECT_TIMEOUT_S), ways.shown.unproject)


@click.command()
@click.pass_obj
def projections(session: Session) -> None:
    """List the projections, and how their remotes are."""
    ways = Ways(session)
    answer = ways.call(lambda client: client.get("/v1/projections", QUESTION_TIMEOUT_S))
    ways.show(answer, ways.shown.projections)


@click.command()
@_PATH
@click.option("-r", "--recursive", is_flag=True, help="Everything below PATH that is known here.")
@click.pass_obj
def refresh(session: Session, path: str, *, recursive: bool) -> None:
    """Ask the remote again for the directory or file at PATH, whatever its age."""
    ways = Ways(session)
    body: dict[str, object] = {"path": ways.path(path), "recursive": recursive}
    ways.show(ways.post("/v1/refresh", body), ways.shown.refresh)


@click.command()
@_PATHS
@click.pass_obj
def residency(session: Session, paths: Sequence[str]) -> None:
    """Say which share of each PATH is here, pinned, and changed here. Asks no remote."""
    ways = Ways(session)
    answer = ways.post("/v1/residency", {"paths": ways.paths(paths)})
    ways.show(answer, ways.shown.residency)


@click.command()
@_PATHS
@_DETACH
@click.pass_obj
def warm(session: Session, paths: Sequence[str], *, detach: bool) -> None:
    """Fetch everything below the PATHs ahead of its readers. Ctrl-C stops it."""
    _work(Ways(session), "/v1/warm", paths, detach=detach)


@click.command()
@_PATHS
@_DETACH
@click.pass_obj
def pin(session: Session, paths: Sequence[str], *, detach: bool) -> None:
    """Fetch everything below the PATHs and never evict it, so that it can be used offline.

    A pinned file stays pinned when the remote has a new version of it, which is fetched when it is
    read or pinned again. Files that appear later are not pinned: pin the directory again.
    """
    _work(Ways(session), "/v1/pin", paths, detach=detach)


@click.command()
@_PATHS
@click.pass_obj
def unpin(session: Session, paths: Sequence[str]) -> None:
    """Let everything below the PATHs be evicted again."""
    ways = Ways(session)
    ways.show(ways.post("/v1/unpin", {"paths": ways.paths(paths)}), ways.shown.unpin)


@click.command()
@_PATHS
@click.pass_obj
def evict(session: Session, paths: Sequence[str]) -> None:
    """Drop what is cached of everything below the PATHs, save what is pinned."""
    ways = Ways(session)
    ways.show(ways.post("/v1/evict", {"paths": ways.paths(paths)}), ways.shown.evict)


@click.command()
@click.option("--stop", "number", type=int, metavar="ID", help="Stop one.")
@click.pass_obj
def works(session: Session, number: int | None) -> None:
    """List warm-ups and pins that run or ended lately, or stop one."""
    ways = Ways(session)
    if number is None:
        answer = ways.call(lambda client: client.get("/v1/warm", QUESTION_TIMEOUT_S))
        ways.show(answer, ways.shown.works)
        return
    url = f"/v1/warm/{number}"
    answer = ways.call(lambda client: client.delete(url, QUESTION_TIMEOUT_S))
    ways.show(answer, ways.shown.work)


@click.command()
@_PATH
@click.pass_obj
def diff(session: Session, path: str) -> None:
    """List what was changed here at and below PATH, in a projection of mode cow."""
    ways = Ways(session)
    where = ways.path(path)
    changes: list[Answer] = []
    cursor: object = None
    any_yet = False
    while True:
        page = ways.post("/v1/diff", {"path": where, "cursor": cursor, "limit": _CHANGES_PAGE})
        cursor = page["cursor"]
        if ways.as_json:
            changes += page["changes"]
        elif page["changes"]:
            any_yet = True
            click.echo(ways.shown.diff(page))
        if cursor is None:
            break
    if ways.as_json or not any_yet:
        ways.show({"changes": changes}, ways.shown.diff)


@click.command()
@_PATH
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def revert(session: Session, path: str, *, yes: bool) -> None:
    """Drop what was changed here at and below PATH: what the remote has comes back.

    What was made here is deleted for good. See diff.
    """
    ways = Ways(session)
    where = ways.path(path)
    if not yes:
        if ways.as_json or not sys.stdin.isatty():
            raise click.UsageError("revert deletes what was made here: say --yes to mean it")
        if not _agrees(ways, where):
            raise SystemExit(EXIT_FAILED)
    ways.show(ways.post("/v1/revert", {"path": where}), ways.shown.revert)


def _agrees(ways: Ways, where: str) -> bool:
    page = ways.post("/v1/diff", {"path": where, "limit": _CHANGES_SHOWN})
    click.echo(ways.shown.diff(page))
    if not page["changes"]:
        return False
    if page["cursor"] is not None:
        click.echo("and more")
    return click.confirm("drop these changes?", default=False)


def _work(ways: Ways, url: str, paths: Sequence[str], *, detach: bool) -> None:
    """Begin a work and, unless told otherwise, stay until it ends."""
    answer = ways.post(url, {"paths": ways.paths(paths)})
    if detach:
        ways.show(answer, ways.shown.work)
        return
    where = f"/v1/warm/{answer['id']}"
    drawn = _Line()
    interrupted = False
    try:
        while answer["state"] == "running":
            drawn.draw(answer)
            time.sleep(_POLL_S)
            answer = ways.call(lambda client: client.get(where, QUESTION_TIMEOUT_S))
    except KeyboardInterrupt:
        interrupted = True
        answer = ways.call(lambda client: client.delete(where, QUESTION_TIMEOUT_S))
    finally:
        drawn.clear()
    ways.show(answer, ways.shown.work)
    if interrupted:
        raise SystemExit(EXIT_INTERRUPTED)
    if answer["state"] != "done" or answer["errors"]:
        raise SystemExit(EXIT_FAILED)


class _Line:
    """One line on the terminal that is drawn over and over; nothing where stderr is none."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def draw(self, answer: Answer) -> None:
        """Show how far a work is."""
        if self._terminal:
            from cli.render_projections import progress

            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # 0: not told
            text = progress(answer)[: width - 1]
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        """Make room for what is printed next."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


COMMANDS: Final = (
    project,
    unproject,
    projections,
    refresh,
    residency,
    warm,
    pin,
    unpin,
    evict,
    works,
    diff,
    revert,
)
