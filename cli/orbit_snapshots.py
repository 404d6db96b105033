"""`orbit snapshots`: what a repository holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cli.orbit_session import Session
    from syncer.catalogue import Snapshot
    from syncer.retention import Verdict

T = TypeVar("T")

_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
_repository = click.option(
    "--repo", required=True, envvar="ORBIT_REPOSITORY", metavar="LOCATION",
    help="The repository: a folder or a URL. Default: $ORBIT_REPOSITORY.",
)  # fmt: skip


def answer_of(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON."""
    return {
        "name": snapshot.name,
        "id": snapshot.id,
        "time_ns": snapshot.time_ns,
        "root": snapshot.root.hex(),
        "nodes": snapshot.sums.nodes,
        "files": snapshot.sums.files,
        "bytes": snapshot.sums.bytes,
        "host": snapshot.host,
        "source": snapshot.source,
        "tags": list(snapshot.tags),
        "expires_ns": snapshot.expires_ns,
        "failed": snapshot.failed,
    }


def _moment(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 10**9))


def _line(answer: dict[str, Any]) -> str:
    from cli.job_render import count
    from cli.render import plain, size

    tags = f"  [{', '.join(answer['tags'])}]" if answer["tags"] else ""
    what = f"{count(answer['files'], 'file')}, {size(answer['bytes'])}"
    lacks = f", {answer['failed']} could not be read" if answer["failed"] else ""
    where = f"{answer['host']}:{answer['source']}"
    return plain(f"{_moment(answer['time_ns'])}  {answer['name']}  {what}{lacks}  {where}{tags}")


@click.group()
def snapshots() -> None:
    """Snapshots of a repository."""


@snapshots.command("list")
@_repository
@click.option("--tag", help="Only those with it.")
@_json
@click.pass_obj
def list_(session: Session, repo: str, tag: str | None, *, as_json: bool) -> None:
    """Show all, oldest first."""

    async def read() -> tuple[list[Snapshot], list[str]]:
        async with session.repository(repo) as repository:
            listing = await repository.catalogue.list()
            return listing.snapshots, listing.damaged

    found, damaged = session.awaited(read)
    for snapshot in found:
        if tag is None or tag in snapshot.tags:
            answer = answer_of(snapshot)
            click.echo(json.dumps(answer) if as_json else _line(answer))
    if damaged:
        session.fail(f"records that cannot be read: {', '.join(damaged)}", 1)


@snapshots.command()
@click.argument("name")
@click.argument("path", default="")
@_repository
@_json
@click.pass_obj
def show(session: Session, name: str, path: str, repo: str, *, as_json: bool) -> None:
    """Show a snapshot, and what is in it at PATH."""
    import os

    from cli.render import plain
    from orbit_paths import path_to_text

    async def read() -> tuple[Snapshot, list[Any]]:
        from syncer.catalogue import select
        from syncer.snapshot_tree import SnapshotTree
        from syncer.tree import NodeKind

        async with session.repository(repo) as repository:
            snapshot = select((await repository.catalogue.list()).snapshots, name)
            tree = SnapshotTree(repository.store, snapshot.root, label=snapshot.name)
            nodes: list[Any] = []

            async def take(page: Any) -> None:
                nodes.extend(page)

            inside = os.fsencode(path).strip(b"/")
            top = await tree.stat(inside)
            if top.kind is NodeKind.DIRECTORY:
                await tree.list(inside, take)
            else:
                nodes.append(top)
            return snapshot, nodes

    snapshot, nodes = session.awaited(read)
    answer = answer_of(snapshot)
    click.echo(json.dumps(answer) if as_json else _line(answer))
    for node in sorted(nodes, key=lambda each: each.name):
        shown = path_to_text(node.name)
        if as_json:
            fields = {"name": shown, "kind": node.kind.value, "size": node.size}
            click.echo(json.dumps(fields | {"mtime_ns": node.mtime_ns, "mode": node.mode}))
        else:
            when = _moment(node.mtime_ns) if node.mtime_ns is not None else ""
            click.echo(f"  {node.kind.value:<9} {node.size:>14}  {when}  {plain(shown)}")


@snapshots.command()
@click.argument("old")
@click.argument("new")
@click.argument("path", default="")
@_repository
@_json
@click.pass_obj
def diff(session: Session, old: str, new: str, path: str, repo: str, *, as_json: bool) -> None:
    """Say what changed from one snapshot to another."""
    import os

    from cli.render import plain
    from orbit_paths import path_to_text

    async def compare() -> None:
        import trio

        from syncer.catalogue import select
        from syncer.snapshot_diff import snapshot_diff
        from syncer.snapshot_tree import SnapshotTree

        async with session.repository(repo) as repository:
            known = (await repository.catalogue.list()).snapshots
            trees = [
                SnapshotTree(repository.store, select(known, name).root, label=name)
                for name in (old, new)
            ]

            def tell() -> None:
                inside = os.fsencode(path).strip(b"/")
                for each in snapshot_diff(trees[0].reader, trees[1].reader, inside):
                    shown = path_to_text(each.path)
                    if as_json:
                        click.echo(json.dumps({"path": shown, "change": str(each.change)}))
                    else:
                        click.echo(f"{each.change:<9} {plain(shown)}")

            await trio.to_thread.run_sync(tell)

    session.awaited(compare)


def _removed(report: Any, *, as_json: bool, dry_run: bool) -> None:
    from cli.job_render import count
    from cli.render import size

    freed = report.collection.bytes_freed
    if as_json:
        names = [each.name for each in report.removed]
        click.echo(json.dumps({"removed": names, "bytes_freed": freed, "dry_run": dry_run}))
        return
    verb = "would remove" if dry_run else "removed"
    for each in report.removed:
        click.echo(f"{verb} {_line(answer_of(each))}")
    click.echo(f"{verb} {count(len(report.removed), 'snapshot')}, freeing {size(freed)}")


def _prune(
    session: Session,
    repo: str,
    choose: Callable[[Any], list[Snapshot]],
    *,
    as_json: bool,
    dry_run: bool,
) -> None:
    async def work() -> Any:
        from syncer.prune import prune

        async with session.repository(repo, prune=True) as repository:
            return await prune(repository, choose, dry_run=dry_run)

    _removed(session.awaited(work), as_json=as_json, dry_run=dry_run)


@snapshots.command()
@click.argument("names", nargs=-1, required=True)
@_repository
@click.option("--dry-run", "-n", is_flag=True)
@_json
@click.pass_obj
def remove(
    session: Session, names: tuple[str, ...], repo: str, *, dry_run: bool, as_json: bool
) -> None:
    """Remove snapshots, and what no other one needs."""

    def choose(known: Any) -> list[Snapshot]:
        from syncer.catalogue import select

        return [select(known, name) for name in names]

    _prune(session, repo, choose, as_json=as_json, dry_run=dry_run)


@snapshots.command()
@_repository
@click.option("--keep-last", default=0, metavar="N")
@click.option("--keep-hourly", default=0, metavar="N")
@click.option("--keep-daily", default=0, metavar="N")
@click.option("--keep-weekly", default=0, metavar="N")
@click.option("--keep-monthly", default=0, metavar="N")
@click.option("--keep-yearly", default=0, metavar="N")
@click.option("--keep-tag", multiple=True, metavar="TAG")
@click.option("--dry-run", "-n", is_flag=True, help="Say what would go, and why the rest stays.")
@_json
@click.pass_obj
def prune(session: Session, /, repo: str, *, dry_run: bool, as_json: bool, **keep: Any) -> None:
    """Remove what no rule keeps, what has expired, and what no snapshot needs."""
    from syncer.retention import KeepRules, plan_retention

    tags = keep.pop("keep_tag")
    numbers = {name.removeprefix("keep_"): value for name, value in keep.items()}
    try:
        rules = KeepRules(**numbers, tags=tags)
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    def choose(known: Any) -> list[Snapshot]:
        import datetime as dt

        zone = dt.datetime.now().astimezone().tzinfo
        verdicts = plan_retention(known, rules, now_ns=time.time_ns(), zone=zone or dt.UTC)
        if dry_run and not as_json:
            for each in verdicts:
                click.echo(_verdict(each))
        return [each.snapshot for each in verdicts if not each.stays]

    _prune(session, repo, choose, as_json=as_json, dry_run=dry_run)


def _verdict(verdict: Verdict) -> str:
    from cli.render import plain

    why = f"stays: {', '.join(verdict.reasons)}" if verdict.stays else f"goes: {verdict.why_not}"
    return plain(f"{verdict.snapshot.name}  {why}")
