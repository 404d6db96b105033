"""Runs a job in this process: shows how far it is, and does what Ctrl-C asks for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import click
import trio

from cli import job_screen
from cli.job_screen import Screen
from syncer.context import Context
from syncer.events import Event, Progress, Report, event_fields, timestamp
from syncer.foreground import Foreground, open_jobs
from syncer.options import JobSpec


@dataclass(frozen=True, slots=True)
class How(job_screen.How):
    """How a job is run and shown."""

    dry_run: bool = False
    detach: bool = False


class Shown:
    """Tells the user. See Tell."""

    def __init__(self, how: How) -> None:
        self.files = how.as_json or how.verbose
        self._screen = Screen(how)
        self.pause = self._screen.pause

    def event(self, event: Event) -> None:
        """See Tell."""
        self._screen.event(event_fields(event))

    def progress(self, progress: Progress) -> None:
        """See Tell."""
        now = timestamp(time.time_ns())
        self._screen.progress({"timestamp": now, **progress.as_json()})

    def report(self, report: Report) -> None:
        """The end."""
        self._screen.report(report.as_json())


def start_worker(context: Context, number: int) -> None:
    """A process that goes on with a job when this one has ended."""
    log = context.state / "worker.log"
    with log.open("ab") as output:
        subprocess.Popen(
            [
                sys.executable, "-m", "syncer.worker", "--state", str(context.state),
                "--cache", str(context.cache), "--job", str(number),
            ],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def queue(spec: JobSpec, context: Context, how: How) -> int:
    """Submit a job that runs by itself; its number is printed."""
    jobs = open_jobs(context)
    try:
        number = jobs.submit(spec)
    finally:
        jobs.close()
    if not spec.schedule and not spec.after:
        start_worker(context, number)
    if how.as_json:
        click.echo(json.dumps({"job": number}))
    else:
        click.echo(f"job {number}")
        if spec.schedule or spec.after:
            click.echo("it runs while `orbit jobs work` does", err=True)
    return 0


def run(spec: JobSpec, context: Context, how: How) -> int:
    """Run a job, or queue it; its exit code."""
    if how.detach or spec.schedule or spec.after:
        if how.dry_run:
            raise click.UsageError("--dry-run shows a plan: it is not queued")
        return queue(spec, context, how)
    shown = Shown(how)
    foreground = Foreground(spec, context, shown, dry_run=how.dry_run)
    try:
        report, detached = trio.run(_run, foreground, shown)
        if detached:
            held = foreground.begin()
            held.release("left to the background")
            number = held.number
            shown.pause()
    finally:
        foreground.close()
    if detached:
        start_worker(context, number)
        click.echo(f"job {number} goes on in the background: `orbit jobs show {number}`", err=True)
        return 0
    shown.report(report)
    return report.exit_code


async def _run(foreground: Foreground, shown: Shown) -> tuple[Report, bool]:
    """The report, and whether the rest is to be done in the background."""
    detached = False

    async def listen() -> None:
        nonlocal detached
        asked = False
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                if number == signal.SIGINT and not asked and _can_ask():
                    asked = True
                    shown.pause()
                    nursery.start_soon(ask)
                    continue
                foreground.control.stop("cancelled")

    async def ask() -> None:
        nonlocal detached
        answer = await trio.to_thread.run_sync(_ask, abandon_on_cancel=True)
        if answer == "d":
            detached = True
            foreground.control.stop("detached")
        elif answer == "c":
            foreground.control.stop("cancelled")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        report = await foreground.run()
        nursery.cancel_scope.cancel()
    return report, detached and report.outcome == "detached"


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask() -> str:
    click.echo("\n(d)etach and go on in the background, (c)ancel, or go on? ", err=True, nl=False)
    return sys.stdin.readline().strip().lower()[:1]
