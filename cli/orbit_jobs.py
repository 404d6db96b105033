"""`orbit jobs`: the jobs of this user, in their own `jobs.db`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import click

from cli.verbs import set_of, set_options

if TYPE_CHECKING:
    from cli.orbit_session import Session
    from syncer.jobs import Job, Jobs

_POLL_S: Final = 0.3
_LOG_PAGE: Final = 1_000

_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def answer_of(job: Job) -> dict[str, Any]:
    """A job as JSON."""
    from syncer.jobs_rows import job_fields

    answer: dict[str, Any] = json.loads(json.dumps(job_fields(job)))
    return answer


def _print(job: Job, *, as_json: bool) -> None:
    from cli.job_render import job_line

    answer = answer_of(job)
    click.echo(json.dumps(answer) if as_json else job_line(answer))


@click.group()
def jobs() -> None:
    """Jobs that run, wait or have run: see them, and steer them."""


@jobs.command("list")
@click.option("--state", "states", multiple=True, help="Only these: queued, running, failed, …")
@click.option("--limit", default=50, show_default=True)
@_json
@click.pass_obj
def list_(session: Session, states: tuple[str, ...], limit: int, *, as_json: bool) -> None:
    """Show jobs, newest first."""
    from syncer.job_states import JobState

    try:
        chosen = [JobState(state) for state in states]
    except ValueError as error:
        raise click.BadParameter(f"{error}; there are {', '.join(JobState)}") from error
    found = session.with_jobs(lambda known: known.list(chosen, limit=limit))
    for job in found:
        _print(job, as_json=as_json)
    if not found and not as_json:
        click.echo("no jobs")


@jobs.command()
@click.argument("number", type=int)
@_json
@click.pass_obj
def show(session: Session, number: int, *, as_json: bool) -> None:
    """Show all there is to know of a job."""
    from cli.job_render import job_text

    answer = answer_of(session.with_jobs(lambda known: known.get(number)))
    click.echo(json.dumps(answer) if as_json else job_text(answer))


@jobs.command()
@click.argument("number", type=int)
@_json
@click.pass_obj
def log(session: Session, number: int, *, as_json: bool) -> None:
    """Show what a job has told."""
    from cli.job_render import log_line

    def read(known: Jobs) -> None:
        after = 0
        while lines := known.events(number, after, _LOG_PAGE):
            for line in lines:
                after = line.sequence
                if as_json:
                    click.echo(json.dumps({"sequence": line.sequence, **line.event}))
                else:
                    click.echo(log_line(dict(line.event)))

    session.with_jobs(read)


def _want(session: Session, number: int, word: str, *, as_json: bool) -> Job:
    from syncer.job_states import Wanted

    job = session.with_jobs(lambda known: known.want(number, Wanted(word)))
    _print(job, as_json=as_json)
    return job


@jobs.command()
@click.argument("number", type=int)
@_json
@click.pass_obj
def pause(session: Session, number: int, *, as_json: bool) -> None:
    """Stop a job until it is resumed; what is done stays done."""
    _want(session, number, "pause", as_json=as_json)


@jobs.command()
@click.argument("number", type=int)
@_json
@click.pass_obj
def resume(session: Session, number: int, *, as_json: bool) -> None:
    """Let a paused job go on, in the background."""
    job = _want(session, number, "run", as_json=as_json)
    if str(job.state) == "queued":
        session.start_worker(number)


@jobs.command()
@click.argument("number", type=int)
@_json
@click.pass_obj
def cancel(session: Session, number: int, *, as_json: bool) -> None:
    """End a job within a second; what is done stays done."""
    _want(session, number, "cancel", as_json=as_json)


@jobs.command("set")
@click.argument("number", type=int)
@set_options
@_json
@click.pass_obj
def set_(session: Session, /, number: int, *, as_json: bool, **given: Any) -> None:
    """Change a job that has not ended."""
    asked = set_of(given)

    def change(known: Jobs) -> Job:
        return known.change(number, **asked)

    _print(session.with_jobs(change), as_json=as_json)


@jobs.command()
@click.argument("number", type=int)
@_json
@click.pass_obj
def retry(session: Session, number: int, *, as_json: bool) -> None:
    """Try again what a job failed at, in the background."""
    _print(session.with_jobs(lambda known: known.retry(number)), as_json=as_json)
    session.start_worker(number)


@jobs.command()
@click.argument("number", type=int)
@click.option(
    "--timeout", "timeout_s", type=float, help="Seconds. Default: for as long as it runs."
)
@_json
@click.pass_obj
def wait(session: Session, number: int, timeout_s: float | None, *, as_json: bool) -> None:
    """Return when a job has ended, with its exit code."""
    from cli.job_render import ENDED, exit_code, job_text

    def until_ended(known: Jobs) -> Job | None:
        limit = None if timeout_s is None else time.monotonic() + timeout_s
        while str((job := known.get(number)).state) not in ENDED:
            if limit is not None and time.monotonic() >= limit:
                return None
            time.sleep(_POLL_S)
        return job

    job = session.with_jobs(until_ended)
    if job is None:
        session.fail(f"job {number} has not ended in {timeout_s:g} s", 5)
    answer = answer_of(job)
    click.echo(json.dumps(answer) if as_json else job_text(answer))
    raise SystemExit(exit_code(answer))


@jobs.command()
@click.argument("number", type=int)
@click.pass_obj
def remove(session: Session, number: int) -> None:
    """Forget a job that has ended, or a schedule."""
    session.with_jobs(lambda known: known.remove(number))


@jobs.command()
@click.option("--stay", is_flag=True, help="Wait for more, and for schedules.")
@click.pass_obj
def work(session: Session, *, stay: bool) -> None:
    """Carry out what is queued, here, until nothing is left."""
    session.work(stay=stay)
