"""The process that carries out jobs: the daemon's, and that of `orbit … --detach`.

    python -m syncer.worker --state DIR [--door FD,…] [--parent PID] [--job N] [--stay]

It claims jobs from `jobs.db` until there are none, several at a time, does what people want of
them meanwhile, and ends. With `--parent` it dies with that process, whatever kills it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from blockstore.errors import OrbitError
from syncer.context import Context
from syncer.engine import Control, run_job
from syncer.events import Report
from syncer.job_link import CLEAN_DAYS, CLEAN_JOBS_MAX, JobTell, adopt, end, obey
from syncer.jobs import Jobs
from syncer.jobs_errors import LeaseLost
from syncer.jobs_held import HeldJob
from syncer.limit import Limit
from syncer.linux import few_heaps
from syncer.remotes.policy import RemotePolicy
from syncer.settings import Settings, load_settings

if TYPE_CHECKING:
    from syncer.door import Door

JOBS_AT_ONCE: Final = 2
EXIT_NOTHING: Final = 2  # it could not begin: why is told on standard error
_CLEAN_EVERY_S: Final = 3_600.0
_LOOK_EVERY_S: Final = 0.5
_PR_SET_PDEATHSIG: Final = 1


async def carry_out(held: HeldJob, context: Context) -> None:
    """One job that has been claimed, from beginning to end.

    Whatever ends it, the job is given back at once: ended, or to be claimed again.
    """
    control = Control()
    report: Report | None = None
    reason = "the process that ran it was stopped"
    lost = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.tend, partial(obey, control), partial(adopt, control))
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
        lost = True  # somebody else has it
    except* OrbitError as group:
        # The state folder's disk: what was recorded stays, and the job is claimed again later.
        reason, report = str(_first(group)), None
        print(f"job {held.number}: {reason}", file=sys.stderr)  # noqa: T201
    finally:
        if not lost:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_give_back, held, report, reason)


def _first(group: BaseExceptionGroup[OrbitError]) -> OrbitError:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, OrbitError)
    return first


def _give_back(held: HeldJob, report: Report | None, reason: str) -> None:
    """End a job, or let it be claimed again. Blocks."""
    try:
        if report is not None:
            end(held, report)
            return
    except LeaseLost:
        return
    except OrbitError as error:
        reason = str(error)
        print(f"job {held.number}: {reason}", file=sys.stderr)  # noqa: T201
    # If the disk refuses this, too, the lease runs out.
    with contextlib.suppress(OrbitError):
        held.release(reason)


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
    cleaned_s = -math.inf

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
            if not running:
                cleaned_s = await _clean(jobs, cleaned_s)
                if not stay:
                    break
            with trio.move_on_after(_LOOK_EVERY_S):
                await ended.wait()


async def _clean(jobs: Jobs, cleaned_s: float) -> float:
    """With nothing else to do, forget the steps of old jobs, once an hour; when that was last."""
    if trio.current_time() - cleaned_s < _CLEAN_EVERY_S:
        return cleaned_s
    clean = partial(jobs.clean, days=CLEAN_DAYS, jobs_max=CLEAN_JOBS_MAX)
    try:
        await trio.to_thread.run_sync(clean)
    except OrbitError as error:  # the disk is full, say: nothing depends on it
        print(f"old jobs stay: {error}", file=sys.stderr)  # noqa: T201
    return trio.current_time()


def die_with(parent: int) -> None:
    """Have the kernel end this process when `parent` does; at once if it is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        raise SystemExit(1)


async def _until_told(
    jobs: Jobs, context: Context, limit: Limit, options: argparse.Namespace
) -> None:
    """Work; SIGTERM and SIGINT give back what runs. `limit`: of all jobs together."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit.tend)

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


def _settings(options: argparse.Namespace) -> Settings:
    """The daemon's, or the user's own. Raises SettingsInvalid."""
    if options.classes is None:
        return load_settings()
    classes = tuple((glob, name) for glob, name in options.classes)
    return Settings(classes, options.audit_keep_days)


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
    parser.add_argument("--bandwidth", default="", metavar="RATE|TIMETABLE")
    parser.add_argument("--classes", type=json.loads, metavar="JSON")
    parser.add_argument("--audit-keep-days", type=int, default=0, metavar="DAYS")
    parser.add_argument("--credentials", default="", metavar="FILE")
    parser.add_argument("--policy", type=json.loads, default={}, metavar="JSON")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with(options.parent)
    try:
        _work_as(options)
    except OrbitError as error:  # settings that cannot be used, a damaged database
        print(f"no jobs are carried out: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_NOTHING) from error


def _work_as(options: argparse.Namespace) -> None:
    """What the command line says, from beginning to end. Raises OrbitError."""
    few_heaps()
    limit = Limit(options.bandwidth)
    settings = _settings(options)
    context = Context(
        bandwidth=limit.bucket,
        classes=settings.classes,
        audit_keep_days=settings.audit_keep_days,
        state=options.state,
        cache=options.cache or options.state / "cache",
        door=open_door(options.door) if options.door is not None else None,
        mount=options.mount,
        credentials=options.credentials,
        policy=RemotePolicy(**options.policy),
    )
    jobs = Jobs.open(options.state / "jobs.db")
    try:
        trio.run(_until_told, jobs, context, limit, options)
    finally:
        context.close()
        jobs.close()


if __name__ == "__main__":
    main()
