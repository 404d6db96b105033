"""What the commands of `orbit` do: the one place where the command line meets the syncer.

Everything of the syncer is imported when it is needed: `orbit --help` loads none of it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from syncer.context import Context
    from syncer.jobs import Jobs
    from syncer.options import JobSpec
    from syncer.repository import Repository

EXIT_NOTHING = 2
_GC_THRESHOLD = 200_000

T = TypeVar("T")


def _is_from_environment(option: str) -> bool:
    context = click.get_current_context(silent=True)
    found = context and context.get_parameter_source(option)
    return found is ParameterSource.ENVIRONMENT


class Session:
    """One call of `orbit`."""

    def __init__(self) -> None:
        self._context: Context | None = None

    @property
    def context(self) -> Context:
        """Folders and the like."""
        if self._context is None:
            from syncer.context import Context
            from syncer.settings import load_settings

            found = self.guarded(load_settings)
            self._context = Context(classes=found.classes, audit_keep_days=found.audit_keep_days)
        return self._context

    def fail(self, message: str, code: int = EXIT_NOTHING) -> NoReturn:
        """Say why, and end."""
        from cli.render import plain

        click.echo(f"orbit: {plain(message)}", err=True)
        raise SystemExit(code)

    def guarded(self, work: Callable[[], T]) -> T:
        """Do it; expected errors end the program with their message."""
        from blockstore.errors import OrbitError

        try:
            return work()
        except OrbitError as error:
            self.fail(str(error))
        except BaseExceptionGroup as group:
            expected, rest = group.split(OrbitError)
            if expected is None or rest is not None:
                raise
            first: BaseException = expected
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            self.fail(str(first))
        finally:
            if self._context is not None:
                self._context.close()

    def awaited(self, work: Callable[[], Awaitable[T]]) -> T:
        """Likewise, in a trio loop."""
        import trio

        async def run() -> T:
            return await work()

        return self.guarded(lambda: trio.run(run))

    def with_jobs(self, work: Callable[[Jobs], T]) -> T:
        """Do something with the user's jobs."""
        from syncer.foreground import open_jobs

        def run() -> T:
            jobs = open_jobs(self.context)
            try:
                return work(jobs)
            finally:
                jobs.close()

        return self.guarded(run)

    def start_worker(self, number: int) -> None:
        """A process that carries out a job."""
        from cli.orbit_run import start_worker

        start_worker(self.context, number)

    def work(self, *, stay: bool) -> None:
        """Carry out jobs here."""
        from syncer.worker import main

        main(
            [
                "--state", str(self.context.state), "--cache", str(self.context.cache),
                *(["--stay"] if stay else []),
            ]
        )  # fmt: skip

    @property
    def audit_folder(self) -> Path:
        """Where the audit trail is."""
        return self.context.state / "audit"

    @asynccontextmanager
    async def repository(self, location: str, *, prune: bool = False) -> AsyncIterator[Repository]:
        """A repository, open for reading, or for removing."""
        from syncer.repository import Access, Repository

        access = Access.PRUNE if prune else Access.READ
        async with Repository.open(self.place(location), self.context, access) as repository:
            yield repository

    # --- verbs ----------------------------------------------------------------------------------

    def run(self, verb: str, given: dict[str, Any]) -> None:
        """Carry out a verb, or queue it; ends the program with its exit code."""
        # Imports and jobs make many values and no circles: 10,000 small files take 8 % less of the
        # processor.
        gc.set_threshold(_GC_THRESHOLD, 50, 50)
        from cli.orbit_run import How, run

        how = How(
            dry_run=given.pop("dry_run"),
            verbose=given.pop("verbose"),
            quiet=given.pop("quiet"),
            as_json=given.pop("as_json"),
            explain=given.pop("explain"),
            detach=given["detach"],
        )
        spec = self.guarded(lambda: self.spec_of(verb, given))
        code = self.guarded(lambda: run(spec, self.context, how))
        gc.freeze()  # for the interpreter's last collections: they took 30 ms to free nothing
        raise SystemExit(code)

    def spec_of(self, verb: str, given: dict[str, Any]) -> JobSpec:
        """The job that the command line asks for. Raises OrbitError, UsageError."""
        from cli import places
        from cli.verbs import job_of
        from syncer.jobs_spec import spec_of

        named = given.pop("repo", None) or ""
        words = list(given.get("places") or ())
        if verb == "verify" and len(words) == 2 and _is_from_environment("repo"):
            named = ""  # A and B are compared; who means a snapshot says so
        if verb in {"restore", "verify"} and named:
            prefix = places.repository(named)
            if given.get("source"):
                given["source"] = places.snapshot(given["source"], f"{prefix}#")
            elif words:
                words[0] = places.snapshot(words[0], f"{prefix}#")
            elif verb == "verify":
                words = [prefix]
            given["places"] = tuple(words)
        job = job_of(verb, given, destination=named if verb == "backup" else "")
        if verb == "backup" and "destination" not in job:
            raise click.UsageError("backup into which repository? Give DST, or --repo LOCATION")
        filters = job["options"].get("filters")
        if filters:
            from syncer.filter_rules import expand

            job["options"]["filters"] = list(expand(filters, _read_rules))
        return spec_of(job)

    # --- small commands ---------------------------------------------------------------------------

    def filter_test(self, path: str, filters: tuple[str, ...], *, as_json: bool) -> None:
        """Say which rule decides."""
        self.guarded(lambda: self._filter_test(path, filters, as_json=as_json))

    def _filter_test(self, path: str, filters: tuple[str, ...], *, as_json: bool) -> None:
        import time

        from cli.render import plain
        from syncer.filters import filter_test
        from syncer.tree import Node, NodeKind

        name = os.fsencode(path).strip(b"/")
        kind = NodeKind.DIRECTORY if path.endswith("/") else NodeKind.FILE
        node = Node(name.rpartition(b"/")[2], kind)
        if (here := Path(path)).exists():
            found = here.stat()
            kind = NodeKind.DIRECTORY if here.is_dir() else NodeKind.FILE
            node = node._replace(kind=kind, size=found.st_size, mtime_ns=found.st_mtime_ns)
        tested = filter_test(name, filters, node=node, now_ns=time.time_ns(), read=_read_rules)
        if as_json:
            rule = tested.decision.rule
            answer = {
                "path": path,
                "verdict": tested.decision.verdict.name.lower(),
                "rule": None if rule is None else str(rule),
                "at": os.fsdecode(tested.at),
            }
            click.echo(json.dumps(answer))
        else:
            click.echo(plain(str(tested)))

    def place(self, location: str) -> str:
        """A repository's location, absolute, without `repo:`."""
        from cli import places

        return places.absolute(places.repository(location)).removeprefix("repo:")

    def init(self, location: str, *, as_json: bool) -> None:
        """Make a repository."""
        from syncer.repository import init_repository

        place = self.guarded(lambda: self.place(location))
        made = self.awaited(lambda: init_repository(place, self.context))
        if as_json:
            click.echo(json.dumps({"location": place, "uuid": made.uuid.hex()}))
        else:
            click.echo(f"made a repository at {place}")

    def unlock(self, location: str, *, force: bool, as_json: bool) -> None:
        """Remove locks."""
        from cli.render import plain
        from syncer.repository import unlock

        place = self.guarded(lambda: self.place(location))
        removed = self.awaited(lambda: unlock(place, self.context, force=force))
        if as_json:
            click.echo(json.dumps({"removed": [str(each) for each in removed]}))
            return
        for each in removed:
            click.echo(f"removed: {plain(each)}")
        if not removed:
            click.echo("no lock of a dead process was there")


def _read_rules(path: str) -> bytes:
    """A file of rules. Raises FilterError."""
    from syncer.filter_patterns import FilterError

    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise FilterError(f"{path}: {error.strerror}") from error
