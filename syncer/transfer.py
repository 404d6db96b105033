"""Carries out the steps of a plan: several at once, again where that may help, each for itself.

Workers take steps from the ledger. Directories are made before anything else is taken, so that what
lies in them finds them; deletions and metadata of directories go level by level. What became of
steps is noted in batches: where the ledger is durable, after the destination is.

A step that fails fails alone: its error is kept and the rest goes on, unless the destination is
full, which ends all copying with one reason.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from syncer.events import Event, Report, Tell, shown
from syncer.options import Options
from syncer.remotes.errors import TRANSIENT, Full, RemoteError, Unreachable
from syncer.steps import Step, StepKind, StepResult, StepState, TakenStep
from syncer.transfer_ledger import Ledger, depth
from syncer.transfer_meter import Meter
from syncer.transfer_steps import NotVerified, Steps
from syncer.transfer_tidy import Tidy

ATTEMPTS_MAX: Final = 5  # of a step that fails while others succeed
_BACKOFF_S: Final = 0.5  # before the second attempt; doubles
_BACKOFF_MAX_S: Final = 15.0
_LEVEL_STEPS: Final = 2_000  # taken at once of what goes level by level
_RESULTS_MAX: Final = 1_000  # gathered before they are noted
_NOTE_EVERY_S: Final = 0.25

MAKING: Final = (StepKind.COPY, StepKind.SYMLINK, StepKind.SPECIAL)
_MOVING: Final = frozenset({StepKind.COPY, StepKind.REPLACE})

# What each kind is called in events and in the audit trail.
EVENT_OF: Final = {
    StepKind.MKDIR: "directory.made",
    StepKind.COPY: "file.copied",
    StepKind.SYMLINK: "file.copied",
    StepKind.SPECIAL: "file.copied",
    StepKind.LINK: "file.linked",
    StepKind.METADATA: "metadata.set",
    StepKind.TRASH: "name.trashed",
    StepKind.DELETE: "name.deleted",
    StepKind.REPLACE: "file.copied",
    StepKind.DIRECTORY_METADATA: "metadata.set",
}


# Where a report counts them.
COUNTED_AS: Final = {
    StepKind.MKDIR: "directories_made",
    StepKind.COPY: "files_copied",
    StepKind.SYMLINK: "files_copied",
    StepKind.SPECIAL: "specials_made",
    StepKind.LINK: "links_made",
    StepKind.METADATA: "metadata_set",
    StepKind.TRASH: "trashed",
    StepKind.DELETE: "deleted",
    StepKind.REPLACE: "files_copied",
}


class Feed:
    """Says when there is more to take, and when no more comes."""

    def __init__(self) -> None:
        self.ended = False
        self._changed = trio.Event()

    def more(self) -> None:
        """Steps have been added."""
        self._changed.set()
        self._changed = trio.Event()

    def end(self) -> None:
        """No more will be."""
        self.ended = True
        self.more()

    async def wait(self) -> None:
        """Until one of both."""
        await self._changed.wait()


class Mover(Protocol):
    """A way to carry out many steps at once that is faster than one by one."""

    bytes_max: int  # of a batch

    @property
    def steps_max(self) -> int:
        """Of a batch, now."""

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """Try; None: this one is for somebody else. Raises nothing but bugs."""


class Light(Protocol):
    """A way to carry out many steps that move no bytes in one go."""

    async def carry_out(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """Try, in this order; None: this one is for somebody else. Raises nothing but bugs."""


Keep = Callable[[Sequence[tuple[Step, StepResult]]], None]


class Transfer:
    """One run of a job's steps."""

    def __init__(
        self,
        steps: Steps,
        ledger: Ledger,
        report: Report,
        meter: Meter,
        tell: Tell,
        *,
        parallel: int,
        wait_s: float = 0.0,
        durable: bool = False,
        mover: Mover | None = None,
        light: Light | None = None,
        keep: Keep | None = None,
        tidy: Tidy | None = None,
        turns: trio.Lock | None = None,
        seed: int | None = None,
    ) -> None:
        """`wait_s`: how long a side may be away; `durable`: the ledger outlives the process.

        `keep`: is given what was done or failed, for the audit trail, before the ledger is; blocks.
        `tidy`: is shown steps before they are carried out. `turns`: held by whoever writes many
        small files; threads that call the system and threads that calculate hand the interpreter's
        lock to each other at every call.
        """
        self._steps = steps
        self._options: Options = steps.options
        self._ledger = ledger
        self._report = report
        self._meter = meter
        self._tell = tell
        self._parallel = parallel
        self._working = 0  # workers, now
        self._hire: Callable[[], None] | None = None  # starts those that are missing
        self._wait_s = wait_s
        self._durable = durable
        self._mover = mover
        self._light = light
        self._keep = keep
        self._tidy = tidy
        self._turns = turns or trio.Lock()
        self._random = random.Random(seed)  # noqa: S311  jitter
        self._results: list[tuple[Step, StepResult]] = []  # to be noted
        self._out: dict[int, None] = {}  # taken, not noted
        self._noting = trio.Lock()
        self._taking = trio.Lock()
        self._succeeded_s = trio.current_time()  # when a step last did
        self.full = ""  # why nothing more is copied
        self.stopped = False  # by --fail-fast

    # --- phases -------------------------------------------------------------------------------

    def set_parallel(self, parallel: int, ahead_bytes: int) -> None:
        """Work on so many files at a time from now on, reading so far ahead in each."""
        self._parallel = parallel
        self._steps.read_ahead(ahead_bytes)
        if self._hire is not None and self._working:
            self._hire()

    async def run(self, kinds: Sequence[StepKind], feed: Feed | None = None) -> None:
        """Carry out all steps of these kinds, until the feed has ended and none waits."""
        if feed is None:
            feed = Feed()
            feed.end()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._note_now_and_then)
                async with trio.open_nursery() as workers:

                    def hire() -> None:
                        while self._working < self._parallel:
                            self._working += 1
                            workers.start_soon(self._work, kinds, feed)

                    self._hire = hire
                    hire()
                nursery.cancel_scope.cancel()
        finally:
            self._hire = None
            await self._leave()

    async def run_levels(self, kind: StepKind) -> None:
        """Carry out all steps of a kind, those of one depth before those of the next."""
        try:
            while not self.stopped:
                taken = self._take((kind,), _LEVEL_STEPS, None)
                if not taken:
                    break
                await self._levels(taken)
                await self._note()
        finally:
            await self._leave()

    async def _levels(self, taken: Sequence[TakenStep]) -> None:
        for _, level in itertools.groupby(taken, key=lambda each: depth(each.step.path)):
            todo = (await self._lightly(list(level)))[::-1]

            async def work(todo: list[TakenStep] = todo) -> None:
                while todo and not self.stopped:
                    await self._one(todo.pop())

            async with trio.open_nursery() as nursery:
                for _ in range(min(self._parallel, len(todo))):
                    nursery.start_soon(work)

    async def _leave(self) -> None:
        """Whatever happens: what was done is noted, what was not may be taken again."""
        with trio.CancelScope(shield=True):
            await self._note()
        if self._out:
            self._ledger.give_back(list(self._out))
            self._out.clear()

    # --- taking -------------------------------------------------------------------------------

    def _take(
        self, kinds: Sequence[StepKind], limit: int, bytes_max: int | None
    ) -> list[TakenStep]:
        taken = self._ledger.next_steps(kinds, limit=limit, bytes_max=bytes_max)
        for each in taken:
            self._out[each.number] = None
        return taken

    async def _work(self, kinds: Sequence[StepKind], feed: Feed) -> None:
        try:
            while not self.stopped and self._working <= self._parallel:
                if not await self._some(kinds, feed):
                    return
        finally:
            self._working -= 1

    async def _some(self, kinds: Sequence[StepKind], feed: Feed) -> bool:
        """Carry out what comes next, or wait for it; false: nothing will come."""
        limit, bytes_max = 1, None
        if self._mover is not None:
            limit, bytes_max = self._mover.steps_max, self._mover.bytes_max
        async with self._taking:
            while folders := self._take((StepKind.MKDIR,), _LEVEL_STEPS, None):
                await self._levels(folders)
            taken = self._take(kinds, limit, bytes_max)
        if taken:
            if self._tidy is not None:
                await self._tidy.before(taken)
            await self._batch(taken)
        elif feed.ended:
            return False
        else:
            await feed.wait()
        if len(self._results) >= _RESULTS_MAX:
            await self._note()
        return True

    async def _batch(self, taken: Sequence[TakenStep]) -> None:
        if self._mover is None or self.full:
            for each in taken:
                await self._one(each)
            return
        files = [each for each in taken if each.step.kind is StepKind.COPY]
        names = [shown(each.step.path) for each in files[:1]]
        for name in names:
            self._meter.current[name] = None
        moved = await self._mover.move(files) if files else []
        for name in names:
            self._meter.current.pop(name, None)
        others = [each for each in taken if each.step.kind is not StepKind.COPY]
        left = await self._lightly(others) if others else []
        for each, result in zip(files, moved, strict=True):
            if result is None:
                left.append(each)
            else:
                self._succeeded_s = trio.current_time()
                self._became(each.step, result)
        for each in left:
            if self.stopped:
                return
            await self._one(each)

    async def _lightly(self, taken: Sequence[TakenStep]) -> list[TakenStep]:
        """Those that are left to be carried out one by one."""
        if self._light is None:
            return list(taken)
        left = []
        for each, result in zip(taken, await self._light.carry_out(taken), strict=True):
            if result is None:
                left.append(each)
            else:
                self._succeeded_s = trio.current_time()
                self._became(each.step, result)
        return left

    # --- one step -----------------------------------------------------------------------------

    async def _one(self, taken: TakenStep) -> None:
        step = taken.step
        if self.full and step.kind in _MOVING:
            result = StepResult(taken.number, StepState.FAILED, error=self.full, transient=True)
            self._became(step, result)
            await trio.lowlevel.checkpoint()
            return
        name = shown(step.path)
        self._meter.current[name] = None
        try:
            result = await self._patiently(taken)
        finally:
            self._meter.current.pop(name, None)
        self._became(step, result)

    async def _patiently(self, taken: TakenStep) -> StepResult:
        """Try until it works, or is of no use any more."""
        began_s = trio.current_time()
        for attempt in itertools.count(1):
            try:
                result = await self._steps.carry_out(taken.number, taken.step, taken.checkpoint)
            except RemoteError as error:
                if not self._worth_it(error, attempt, began_s):
                    return self._failure(taken.number, error)
                self._report.retried += 1
                self._say("file.retried", taken.step, message=str(error))
            else:
                self._succeeded_s = trio.current_time()
                return result
            pause_s = min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** (attempt - 1))
            await trio.sleep(pause_s * self._random.uniform(0.5, 1.0))
        raise AssertionError

    def _worth_it(self, error: RemoteError, attempt: int, began_s: float) -> bool:
        if not isinstance(error, TRANSIENT):
            return False
        now_s = trio.current_time()
        if isinstance(error, Unreachable):
            # One side is away: all wait, for as long as was said. It is there for others: then it
            # is this file.
            if self._succeeded_s <= began_s:
                return now_s - began_s < self._wait_s
            return attempt < ATTEMPTS_MAX and self._wait_s > 0
        return attempt < ATTEMPTS_MAX

    def _failure(self, number: int, error: RemoteError) -> StepResult:
        if isinstance(error, Full) and not self.full:
            self.full = f"the destination is full: {error}"
        if isinstance(error, NotVerified):
            self._report.differences += 1
        return StepResult(
            number,
            StepState.FAILED,
            error=self.full if isinstance(error, Full) else str(error),
            transient=isinstance(error, (*TRANSIENT, Full)),
        )

    def _became(self, step: Step, result: StepResult) -> None:
        """Count it, tell it, and keep it to be noted."""
        self._out.pop(result.number, None)
        self._results.append((step, result))
        count(self._report, step, result)
        if step.kind in _MOVING and step.node is not None:
            meter = self._meter
            if result.state is StepState.DONE:
                meter.files_done += 1
            elif result.state is StepState.FAILED:
                meter.files_failed += 1
        if result.state is StepState.FAILED:
            self._say("file.failed", step, message=result.error)
            if self._options.fail_fast:
                self.stopped = True
        elif self._tell.files and result.state is StepState.DONE:
            self._say(EVENT_OF[step.kind], step, result=result)

    def _say(
        self, event: str, step: Step, *, result: StepResult | None = None, message: str = ""
    ) -> None:
        self._tell.event(
            Event(
                event,
                time.time_ns(),
                source=shown(step.source_path) if step.node is not None else "",
                destination=shown(step.path),
                bytes=result.bytes_moved + result.bytes_saved if result is not None else 0,
                duration_ms=result.seconds * 1000 if result is not None else 0.0,
                checksum=result.checksum if result is not None else "",
                message=message or step.reason,
            )
        )

    # --- noting -------------------------------------------------------------------------------

    async def _note_now_and_then(self) -> None:
        while True:
            await trio.sleep(_NOTE_EVERY_S)
            await self._note()

    async def _note(self) -> None:
        """Tell the ledger; where that outlives us, when the destination does too."""
        async with self._noting:
            if not self._results:
                return
            results, self._results = self._results, []
            if self._durable:
                try:
                    await self._steps.target.sync()
                except RemoteError:
                    self._results = results + self._results  # the next time
                    return
            noted = [result for _, result in results]
            async with self._turns:
                if self._keep is not None:
                    await trio.to_thread.run_sync(self._keep, results)
                if self._durable:
                    await trio.to_thread.run_sync(self._ledger.record, noted)
                else:
                    self._ledger.record(noted)


def count(report: Report, step: Step, result: StepResult) -> None:
    """Add what became of a step to the report."""
    if result.state is StepState.FAILED:
        report.fail(shown(step.path), result.error, transient=result.transient)
        return
    if result.state is not StepState.DONE:
        return
    report.bytes_moved += result.bytes_moved
    report.bytes_saved += result.bytes_saved
    if step.kind in COUNTED_AS:
        name = COUNTED_AS[step.kind]
        setattr(report, name, getattr(report, name) + 1)
