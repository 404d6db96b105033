"""The commands of `orbit-ctl` that are jobs of the daemon, and those that steer jobs.

Imports here are what `--help` costs; the rest is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlencode

import click

from cli.projections import QUESTION_TIMEOUT_S, Answer, Ways
from cli.verbs import VerbCommand, job_of, running, set_of, set_options, verb_options

if TYPE_CHECKING:
    from cli.client import Client
    from cli.orbit_ctl import Session

T = TypeVar("T")

_CALL_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.3
_LOG_PAGE: Final = 1_000
EXIT_NOTHING: Final = 2
EXIT_TIMEOUT: Final = 5
_FROM_FILES: Final = ("merge ", ". ", "include-from ", "exclude-from ")


def _rules(filters: list[str]) -> list[str]:
    """Rules in files are named so that the daemon finds them."""
    found = []
    for rule in filters:
        word = next((each for each in _FROM_FILES if rule.startswith(each)), "")
        path = rule[len(word) :].strip()
        if word and path == "-":
            raise click.UsageError("rules from standard input: `orbit` reads them, the daemon not")
        found.append(word + os.path.abspath(path) if word else rule)  # noqa: PTH100
    return found


class _JobWays(Ways):
    """Calls whose failure must not look like a job's end: 3 says that data did not verify."""

    begun = False  # a job was submitted, or is waited for

    def call(self, call: Callable[[Client], T]) -> T:
        """Make a call; ends the program when it fails: nothing was done, or nobody knows."""
        from cli.client import CallFailed, ConnectionLost, DaemonAbsent, DaemonSilent

        try:
            return call(self.client)
        except CallFailed as failure:
            unknown = isinstance(failure, DaemonSilent | ConnectionLost) or (
                self.begun and isinstance(failure, DaemonAbsent)
            )
            failure.exit_code = EXIT_TIMEOUT if unknown else EXIT_NOTHING
            self._session.fail(failure)


def job_fields(verb: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of the job that the command line asks for. Raises UsageError."""
    from cli import places

    source, rest = _first_place(given)
    if source and (verb == "restore" or (verb == "verify" and not rest)):
        # Of `verify A B` neither is a snapshot unless it says so.
        of_store = places.snapshot(source, "snapshot:")
        given = given | {"source": of_store, "destination": None, "places": rest}
    job = job_of(verb, given)
    if filters := job["options"].get("filters"):
        job["options"]["filters"] = _rules(filters)
    return job


def _submit(session: Session, verb: str, given: dict[str, Any]) -> None:
    from cli.job_screen import How

    how = How(
        verbose=given.pop("verbose"),
        quiet=given.pop("quiet"),
        as_json=given.pop("as_json") or session.as_json,
        explain=given.pop("explain"),
    )
    job = job_fields(verb, given)
    ways = _JobWays(session)
    made = ways.post("/v1/jobs", {"spec": job}, _CALL_TIMEOUT_S)
    ways.begun = True
    number = made["number"]
    if given["detach"] or made["state"] == "scheduled":
        click.echo(json.dumps({"job": number}) if how.as_json else f"job {number}")
        return
    raise SystemExit(_watch(ways, number, how))


def _first_place(given: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """SRC, and the places that are left for DST."""
    places = tuple(given["places"])
    source = given.get("source") or "".join(places[:1])
    rest = places if given.get("source") else places[1:]
    return source, (given["destination"], *rest) if given.get("destination") else rest


def _watch(ways: Ways, number: int, how: Any) -> int:
    from cli.job_watch import Watch

    def log(after: int) -> Answer:
        asked = urlencode({"after": after, "limit": _LOG_PAGE})
        url = f"/v1/jobs/{number}/log?{asked}"
        return ways.call(lambda client: client.get(url, _CALL_TIMEOUT_S))

    def want(word: str) -> Answer:
        return ways.post(f"/v1/jobs/{number}/want", {"wanted": word}, _CALL_TIMEOUT_S)

    return Watch(number, how, log, want).run()


@click.command(cls=VerbCommand)
@verb_options("copy")
@running
@click.pass_obj
def copy(session: Session, /, **given: Any) -> None:
    """Copy SRC to DST, as a job of the daemon. What is there and newer stays.

    A place below the mount is read and written without going through the kernel.
    """
    _submit(session, "copy", given)


@click.command(cls=VerbCommand)
@verb_options("sync")
@running
@click.pass_obj
def sync(session: Session, /, **given: Any) -> None:
    """Make DST like SRC, as --mode says."""
    _submit(session, "sync", given)


@click.command(cls=VerbCommand)
@verb_options("backup")
@running
@click.pass_obj
def backup(session: Session, /, **given: Any) -> None:
    """Keep SRC as it is now as a snapshot in the daemon's store (or DST, a repository).

    For what lies in the mount `snapshot create` does it at once and atomically.
    """
    _submit(session, "backup", given)


@click.command(cls=VerbCommand)
@verb_options("restore")
@running
@click.pass_obj
def restore(session: Session, /, **given: Any) -> None:
    """Bring SNAPSHOT[:PATH] of the daemon's store back to DST, with all its attributes."""
    _submit(session, "restore", given)


@click.command(cls=VerbCommand)
@verb_options("verify")
@running
@click.pass_obj
def verify(session: Session, /, **given: Any) -> None:
    """Compare two places, or read SNAPSHOT whole (exit code 3 where they differ)."""
    _submit(session, "verify", given)


@click.command(cls=VerbCommand)
@verb_options("push")
@running
@click.pass_obj
def push(session: Session, /, **given: Any) -> None:
    """Send what was changed here at and below PATH, in a projection, to its remote.

    Files are replaced whole, and only where the remote still has the version that was seen here.
    """
    _submit(session, "push", given)


# --- jobs ----------------------------------------------------------------------------------------

_NUMBER = click.argument("number", type=int)


@click.group()
def jobs() -> None:
    """Jobs that run, wait or have run: see them, and steer them."""


def _print(ways: Ways, answer: Answer) -> None:
    from cli.job_render import job_line

    ways.show(answer, job_line)


@jobs.command("list")
@click.option("--state", "states", multiple=True, help="Only these: queued, running, failed, …")
@click.option("--limit", default=50, show_default=True)
@click.pass_obj
def list_(session: Session, states: tuple[str, ...], limit: int) -> None:
    """Show jobs, newest first."""
    from cli.job_render import job_line

    ways = Ways(session)
    asked = urlencode({"state": states, "limit": limit}, doseq=True)
    answer = ways.call(lambda client: client.get(f"/v1/jobs?{asked}", QUESTION_TIMEOUT_S))
    ways.show(
        answer,
        lambda found: "\n".join(job_line(job) for job in found["jobs"]) or "no jobs",
    )


@jobs.command()
@_NUMBER
@click.pass_obj
def show(session: Session, number: int) -> None:
    """Show all there is to know of a job."""
    from cli.job_render import job_text

    ways = Ways(session)
    answer = ways.call(lambda client: client.get(f"/v1/jobs/{number}", QUESTION_TIMEOUT_S))
    ways.show(answer, job_text)


@jobs.command()
@_NUMBER
@click.pass_obj
def log(session: Session, number: int) -> None:
    """Show what a job has told, and what it failed at."""
    from cli.job_render import log_line

    ways = Ways(session)
    after = 0
    while True:
        asked = urlencode({"after": after, "limit": _LOG_PAGE})
        url = f"/v1/jobs/{number}/log?{asked}"
        page = _page(ways, url)
        for event in page["events"]:
            click.echo(json.dumps(event) if ways.as_json else log_line(event))
        if not page["events"]:
            return
        after = page["after"]


def _page(ways: Ways, url: str) -> Answer:
    return ways.call(lambda client: client.get(url, _CALL_TIMEOUT_S))


def _want(session: Session, number: int, word: str) -> None:
    ways = Ways(session)
    _print(ways, ways.post(f"/v1/jobs/{number}/want", {"wanted": word}, _CALL_TIMEOUT_S))


@jobs.command()
@_NUMBER
@click.pass_obj
def pause(session: Session, number: int) -> None:
    """Stop a job until it is resumed; what is done stays done."""
    _want(session, number, "pause")


@jobs.command()
@_NUMBER
@click.pass_obj
def resume(session: Session, number: int) -> None:
    """Let a paused job go on."""
    _want(session, number, "run")


@jobs.command()
@_NUMBER
@click.pass_obj
def cancel(session: Session, number: int) -> None:
    """End a job within a second; what is done stays done."""
    _want(session, number, "cancel")


@jobs.command("set")
@_NUMBER
@set_options
@click.pass_obj
def set_(session: Session, /, number: int, **given: Any) -> None:
    """Change a job that has not ended."""
    asked = set_of(given)
    ways = Ways(session)
    _print(ways, ways.post(f"/v1/jobs/{number}/set", asked, _CALL_TIMEOUT_S))


@jobs.command()
@_NUMBER
@click.pass_obj
def retry(session: Session, number: int) -> None:
    """Try again what a job failed at."""
    ways = Ways(session)
    _print(ways, ways.post(f"/v1/jobs/{number}/retry", {}, _CALL_TIMEOUT_S))


@jobs.command()
@_NUMBER
@click.option("--timeout", "timeout_s", type=float, help="Seconds. Default: as long as it takes.")
@click.pass_obj
def wait(session: Session, number: int, timeout_s: float | None) -> None:
    """Return when a job has ended, with its exit code."""
    from cli.job_render import ENDED, exit_code, job_text

    ways = _JobWays(session)
    ways.begun = True
    limit = None if timeout_s is None else time.monotonic() + timeout_s
    url = f"/v1/jobs/{number}"
    while (job := ways.call(lambda client: client.get(url, QUESTION_TIMEOUT_S)))[
        "state"
    ] not in ENDED:
        if limit is not None and time.monotonic() >= limit:
            click.echo(f"orbit-ctl: job {number} has not ended in {timeout_s:g} s", err=True)
            raise SystemExit(EXIT_TIMEOUT)
        time.sleep(_POLL_S)
    ways.show(job, job_text)
    raise SystemExit(exit_code(job))


@jobs.command()
@_NUMBER
@click.pass_obj
def remove(session: Session, number: int) -> None:
    """Forget a job that has ended, or a schedule."""
    ways = Ways(session)
    answer = ways.call(lambda client: client.delete(f"/v1/jobs/{number}", _CALL_TIMEOUT_S))
    _print(ways, answer)


COMMANDS: Final = (copy, sync, backup, restore, verify, push, jobs)
