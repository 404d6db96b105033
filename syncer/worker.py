"""The process that carries out jobs: the daemon's, and that of `orbit … --detach`.

    python -m syncer.worker --state DIR [--door FD,…] [--parent PID] [--job N] [--stay]

It claims jobs from `jobs.db` until there are none, several at a time, does what people want of
them meanwhile, and ends. With `--parent` it dies with that process, whatever kills it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from blockstore.errors import OrbitError
from syncer.context import Context
from syncer.engine import Control, run_job
from syncer.events import Event, Progress, Report, event_fields
from syncer.job_states import JobState, Wanted
from syncer.jobs import Jobs
from syncer.jobs_errors import JobError, LeaseLost
from syncer.jobs_held import HeldJob

if TYPE_CHECKING:
    from syncer.door import Door

JOBS_AT_ONCE: Final = 2
_LOOK_EVERY_S: Final = 0.5
_PR_SET_PDEATHSIG: Final = 1

STATE_OF: Final = {
    "done": JobState.DONE,
    "partly": JobState.PARTLY,
    "failed": JobState.FAILED,
    "differs": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}


class JobTell:
    """What a job tells goes into its log. See Tell."""

    def __init__(self, held: HeldJob) -> None:
        self._held = held
        # Not each of a million files that are copied, the audit trail has them; but a plan.
        self.files = held.spec.options.dry_run

    def event(self, event: Event) -> None:
        """See Tell."""
        self._held.tell(event_fields(event))

    def progress(self, progress: Progress) -> None:
        """See Tell."""
        self._held.show(progress.as_json())


def obey(control: Control, wanted: Wanted) -> None:
    """Do what people want."""
    if wanted is Wanted.CANCEL:
        control.stop("cancelled")
    elif wanted is Wanted.PAUSE:
        control.stop("paused")


def reason_of(report: Report) -> str:
    """Why a job did not get done, in a line."""
    if report.outcome == "differs":
        return f"{report.differences} differences: the data did not verify"
    if report.outcome in {"failed", "partly"} and report.failures:
        first = report.failures[0]
        where = f"{first.path}: " if first.path else ""
        more = f" (and {report.failed - 1} more)" if report.failed > 1 else ""
        return f"{where}{first.error}{more}"
    if report.deletions_withheld:
        return f"{report.deletions_withheld} deletions were not carried out"
    return ""


def end(held: HeldJob, report: Report) -> JobState:
    """Give a job back as its report says. Blocks. Raises JobError."""
    if report.outcome == "paused":
        return held.release("paused")
    state = STATE_OF[report.outcome]
    held.finish(state, report.as_json(), reason_of(report))
    return state


async def carry_out(held: HeldJob, context: Context) -> None:
    """One job that has been claimed, from beginning to end."""
    control = Control()
    report: Report | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.tend, lambda wanted: obey(control, wanted))
            dry_run = held.spec.options.dry_run
            report = await run_job(
                held.spec,
                context,
                JobTell(held),
                dry_run=dry_run,
                held=None if dry_run else held,
                control=control,
            )
            nursery.cancel_scope.cancel()
    except* LeaseLost:
        report = None  # somebody else has it
    except* OrbitError as group:
        # The state folder's disk: what was recorded stays, and the job is claimed again later.
        print(f"job {held.number}: {group.exceptions[0]}", file=sys.stderr)  # noqa: T201
        report = None
    if report is not None:
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(end, held, report)
            except JobError as error:
                print(f"job {held.number}: {error}", file=sys.stderr)  # noqa: T201


async def work(
    jobs: Jobs,
    context: Context,
    *,
    number: int = 0,
    at_once: int = JOBS_AT_ONCE,
    stay: bool = False,
) -> None:
    """Carry out jobs until there are none, or this one. `stay`: wait for more, and for schedules.

    Cancelled: what runs is given back, to go on later.
    """
    running = 0
    ended = trio.Event()

    async def one(held: HeldJob) -> None:
        nonlocal running, ended
        running += 1
        try:
            await carry_out(held, context)
        finally:
            running -= 1
            ended.set()
            ended = trio.Event()

    async with trio.open_nursery() as nursery:
        while True:
            held = None
            if running < at_once:
                held = await trio.to_thread.run_sync(jobs.claim, number)
            if held is not None:
                nursery.start_soon(one, held)
                await trio.lowlevel.checkpoint()
                if number:
                    break
                continue
            if not running and not stay:
                break
            with trio.move_on_after(_LOOK_EVERY_S):
                await ended.wait()


def die_with(parent: int) -> None:
    """Have the kernel end this process when `parent` does; at once if it is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        raise SystemExit(1)


async def _until_told(jobs: Jobs, context: Context, options: argparse.Namespace) -> None:
    """Work; SIGTERM and SIGINT give back what runs."""
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        await work(jobs, context, number=options.job, at_once=options.jobs, stay=options.stay)
        nursery.cancel_scope.cancel()


def open_door(descriptors: str) -> Door:
    """The daemon's door: sockets that this process was started with."""
    from syncer.door import Door

    return Door([socket.socket(fileno=int(each)) for each in descriptors.split(",")])


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="syncer.worker")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--door", metavar="FD,…")
    parser.add_argument("--mount", type=os.fsencode)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--job", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=JOBS_AT_ONCE)
    parser.add_argument("--stay", action="store_true")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with(options.parent)
    context = Context(
        state=options.state,
        cache=options.cache or options.state / "cache",
        door=open_door(options.door) if options.door is not None else None,
        mount=options.mount,
    )
    jobs = Jobs.open(options.state / "jobs.db")
    try:
        trio.run(_until_told, jobs, context, options)
    finally:
        context.close()
        jobs.close()


if __name__ == "__main__":
    main()
