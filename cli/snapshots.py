"""`orbit-ctl snapshot`: takes, lists, compares and removes snapshots of the mount.

Imports here are what `--help` costs; the rest is imported by the command that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import click

from cli.projections import CALL_TIMEOUT_S, QUESTION_TIMEOUT_S, Answer, Ways

if TYPE_CHECKING:
    from cli.orbit_ctl import Session
    from cli.render_snapshots import Shown

_PAGE: Final = 5_000
_LIVE: Final = "live"
EXIT_FAILED: Final = 1


def _duration(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Read a duration in seconds; its ValueError is told to the user."""
    from cli import units

    if value is None:
        return None
    try:
        return units.parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


class _Snapshots(Ways):
    """One command's way to the daemon."""

    @property
    def as_text(self) -> Shown:
        """The renderer of snapshots."""
        from cli.render_snapshots import Shown

        return Shown(self.mount)

    def inside(self, path: str) -> str:
        """Return a path in a snapshot, from its root, as the API wants it."""
        import os

        from orbit_paths import path_to_text

        return path_to_text(b"/" + os.fsencode(path).strip(b"/"))

    def all_of(self, ask: Callable[[object], Answer]) -> Iterator[Answer]:
        """Yield every page of an answer that comes in pages."""
        cursor: object = None
        while True:
            page = ask(cursor)
            yield page
            cursor = page["cursor"]
            if cursor is None:
                return


_NAME = click.argument("name")
_INSIDE = click.argument("path", default="/")


@click.group()
def snapshot() -> None:
    """Take, list, show, compare, remove and prune snapshots.

    Each is readable at once under .snapshots/NAME in the root of the mount, and a source for
    `project`: snapshot:NAME[/PATH], with --mode cow as a clone to write into.

    NAME: a name, the beginning of an id, latest, or latest:TAG.
    """


@snapshot.command()
@click.argument("path", required=False)
@click.option("--name", default="", help="Default: what is taken, with date and time.")
@click.option("--tag", "tags", multiple=True, help="Repeatable; see prune.")
@click.option(
    "--expires",
    "expires_s",
    callback=_duration,
    metavar="TIME",
    help="From now; then it is removed by itself. As 12h, 30d.",
)
@click.pass_obj
def create(
    session: Session,
    path: str | None,
    name: str,
    tags: Sequence[str],
    expires_s: float | None,
) -> None:
    """Take a snapshot of the directory at PATH; default: of the whole mount.

    It is one moment of the tree, also while others write, and costs what has changed since the
    last one. Projections below PATH are left out: their remotes have them.
    """
    ways = _Snapshots(session)
    body: dict[str, object] = {
        "path": "/" if path is None else ways.path(path),
        "name": name,
        "tags": list(tags),
        "expires_s": expires_s,
    }
    ways.show(ways.post("/v1/snapshots", body), ways.as_text.taken)


@snapshot.command("list")
@click.pass_obj
def list_all(session: Session) -> None:
    """List all snapshots, newest first."""
    ways = _Snapshots(session)

    def ask(cursor: object) -> Answer:
        query = {"limit": _PAGE} | ({} if cursor is None else {"cursor": cursor})
        url = f"/v1/snapshots?{urlencode(query)}"
        return ways.call(lambda client: client.get(url, QUESTION_TIMEOUT_S))

    found = [each for page in ways.all_of(ask) for each in page["snapshots"]]
    ways.show({"snapshots": found}, ways.as_text.listed)


@snapshot.command()
@_NAME
@_INSIDE
@click.pass_obj
def show(session: Session, name: str, path: str) -> None:
    """Show snapshot NAME and what is in it at PATH."""
    ways = _Snapshots(session)
    body: dict[str, object] = {"name": name, "path": ways.inside(path), "limit": _PAGE}
    url = "/v1/snapshots/show"
    pages = list(ways.all_of(lambda cursor: ways.post(url, body | {"cursor": cursor})))
    entries = [each for page in pages for each in page["entries"]]
    ways.show(pages[0] | {"entries": entries, "cursor": None}, ways.as_text.shown)


@snapshot.command()
@click.argument("old")
@click.argument("new")
@_INSIDE
@click.pass_obj
def diff(session: Session, old: str, new: str, path: str) -> None:
    """List what differs from snapshot OLD to snapshot NEW at and below PATH.

    One of them may be `live`: the tree as it is now.
    """
    ways = _Snapshots(session)
    if (old, new) == (_LIVE, _LIVE):
        raise click.UsageError("the live tree does not differ from itself: name a snapshot")
    body: dict[str, object] = {
        "old": old,
        "new": new,
        "path": ways.inside(path),
        "limit": _PAGE,
    }
    changes: list[Answer] = []
    any_yet = False
    for page in ways.all_of(
        lambda cursor: ways.post("/v1/snapshots/diff", body | {"cursor": cursor})
    ):
        if ways.as_json:
            changes += page["changes"]
        elif page["changes"]:
            any_yet = True
            click.echo(ways.as_text.changes(page))
    if ways.as_json or not any_yet:
        ways.show({"changes": changes}, ways.as_text.changes)


@snapshot.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="Also what is projected; it cannot be read any more.")
@click.pass_obj
def remove(session: Session, names: Sequence[str], *, force: bool) -> None:
    """Remove snapshots. `orbit-ctl collect` frees what only they held."""
    ways = _Snapshots(session)
    body: dict[str, object] = {"names": list(names), "force": force}
    ways.show(ways.post("/v1/snapshots/remove", body, CALL_TIMEOUT_S), ways.as_text.removed)


def _keeps(command: Callable[..., None]) -> Callable[..., None]:
    """Add the rules."""
    for name in ("yearly", "monthly", "weekly", "daily", "hourly", "last"):
        text = "So many stay." if name == "last" else f"So many {name} ones stay."
        command = click.option(
            f"--keep-{name}", name, type=click.IntRange(0), default=0, metavar="N", help=text
        )(command)
    return command


@snapshot.command()
@_keeps
@click.option("--keep-tag", "tags", multiple=True, help="Those with this tag stay. Repeatable.")
@click.option("--source", default="", help="Only snapshots of this source, as `list` shows it.")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why the others stay.")
@click.pass_obj
def prune(
    session: Session,
    *,
    last: int,
    hourly: int,
    daily: int,
    weekly: int,
    monthly: int,
    yearly: int,
    tags: Sequence[str],
    source: str,
    dry_run: bool,
) -> None:
    """Remove the snapshots that no rule keeps, of each source by itself.

    Those with an expiry stay until then. Without any rule only what has expired goes.
    """
    import os

    from orbit_paths import path_to_text

    ways = _Snapshots(session)
    body: dict[str, object] = {
        "last": last,
        "hourly": hourly,
        "daily": daily,
        "weekly": weekly,
        "monthly": monthly,
        "yearly": yearly,
        "tags": list(tags),
        "source": path_to_text(os.fsencode(source)),
        "dry_run": dry_run,
    }
    answer = ways.post("/v1/snapshots/prune", body)
    ways.show(answer, ways.as_text.pruned)
    if answer["failed"]:
        raise SystemExit(EXIT_FAILED)
