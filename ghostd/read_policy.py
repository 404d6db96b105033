"""What to fetch before it is asked for: one open file's reads to wanted ranges. Pure.

The kernel reads for the program: in requests of 128 KiB to 2 MiB, a few at once and therefore in
any order, and further than the program did. So nothing is concluded from the order of single
requests. Reads that touch become *runs*, and a run counts by the bytes that were read in it:

- Sequential and backwards: more was read without a gap than an isolated read of 1 MiB and what the
  kernel adds, or half a MiB from the beginning of the file. The window doubles each time the reader
  has come half-way through it, and is never longer than what has been read in the run: a wrong
  guess at most doubles what is moved.
- Strided: four runs or more began at equal distances, over as many bytes. The next ones are asked
  for, and their number doubles.
- Ends: the head was read, then the tail, and nothing else: the rest of the tail is asked for, once.
- Random readers give no evidence of any of these.

Trust grows when what was asked for is read and falls when the reader leaves it: it moves the
evidence wanted from a new run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

MIB = 1 << 20

WINDOW_BYTES_MIN = MIB
WINDOW_BYTES_MAX = 32 * MIB  # 0.8 GB/s over a round trip of 40 ms
ISOLATED_BYTES = MIB  # one read of so much is no reason to read on
HEAD_EVIDENCE_BYTES = MIB // 2  # who starts at the first byte mostly goes on
TRUST_MIN, TRUST_MAX = -3, 2

# A run that was begun and left is over after so long; a paused player's, which has a window, not.
IDLE_S = 30.0
RUNS_MAX = 16
# A run of which less than this share was read is none.
DENSITY_MIN = 1 / 4

PAGE_BYTES = 4096  # the kernel rounds to pages, so distances differ by one
STEPS_MAX = 32
TAIL_BYTES_MAX = 4 * MIB  # indexes of films and archives


class Range(NamedTuple):
    """Bytes of a file, from `start` up to `end`."""

    start: int
    end: int


class Run(NamedTuple):
    """Reads that touch each other. Offsets and lengths in bytes, times in seconds."""

    start: int
    end: int
    origin: int  # where its first read began: what lies before was read backwards
    read: int  # bytes read, at most end - start
    touched: float  # when it was read last
    window: int = 0  # how far ahead was asked last; 0: no evidence yet
    ahead: int = 0  # asked for up to here: above `end`, backwards below `start`
    left: bool = False  # the reader went elsewhere before it read all that was asked for

    @property
    def backwards(self) -> bool:
        """More of it was read before its origin than behind."""
        return self.origin - self.start > self.end - self.origin


class Stride(NamedTuple):
    """Runs that begin at equal distances. Offsets and lengths in bytes."""

    first: int  # where the first one began
    at: int  # where the last one began
    steps: int  # from `first` to `at`
    length: int  # of the run before the last one, which has ended
    asked: int  # runs behind `at` that were asked for
    depth: int  # how many are asked for at a time

    @property
    def step(self) -> int:
        """Mean distance from one run to the next, negative when they go backwards."""
        return (self.at - self.first) // self.steps

    def steps_to(self, offset: int) -> int | None:
        """The number of the run behind `at` in which a read at `offset` lies; None: in none."""
        step = self.step
        nearest = round((offset - self.at) / step)
        for number in (nearest, nearest - 1, nearest + 1):
            inside = offset - self.at - number * step
            if number >= 0 and -PAGE_BYTES <= inside < self.length + PAGE_BYTES:
                return number
        return None


class ReadPattern(NamedTuple):
    """What is remembered of one open file's reads: at most a kilobyte or two."""

    runs: tuple[Run, ...] = ()  # in the order in which they began
    stride: Stride | None = None
    trust: int = 0
    latest: int = -1  # index of the run that was read last
    tail_asked: bool = False


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """One read, whether it was answered from here, and what was decided: a line to learn from."""

    time_s: float  # since 1970
    file: int
    offset: int
    length: int
    hit: bool
    decided: tuple[Range, ...]


P = TypeVar("P")


class ReadPolicy(Protocol[P]):
    """What is wanted ahead of an open file's reader; P is what the policy remembers of it."""

    def begin(self) -> P:
        """What is known of a file that has just been opened."""

    def observe(
        self, pattern: P, offset: int, length: int, size: int, now: float
    ) -> tuple[P, list[Range]]:
        """A read request of `length` bytes, of a file of `size` bytes, at `now` (seconds).

        What is to be remembered, and the ranges to fetch ahead, nearest first, within the file.
        The read itself is not among them.
        """


@dataclass(frozen=True, slots=True)
class EvidencePolicy:
    """The policy that the module describes.

    `kernel_ahead_bytes` is the mount's own read-ahead, which looks like the program's reads.
    """

    window_bytes_max: int = WINDOW_BYTES_MAX
    kernel_ahead_bytes: int = MIB

    def begin(self) -> ReadPattern:
        """Nothing is known."""
        return ReadPattern()

    def observe(
        self, pattern: ReadPattern, offset: int, length: int, size: int, now: float
    ) -> tuple[ReadPattern, list[Range]]:
        """See ReadPolicy."""
        end = min(offset + length, size)
        if end <= offset:
            return pattern, []
        wanted: list[Range] = []
        # How far from its run a request may arrive before those between.
        slack = max(2 * MIB, self.kernel_ahead_bytes)
        index = _run_of(pattern.runs, offset, end, now, slack)
        if index is None:
            stride, wanted = self._follow_stride(pattern, offset, size)
            tail = _tail_wanted(pattern, offset, end, size)
            wanted += tail
            pattern = _begin_run(pattern, offset, end, now)._replace(
                stride=stride, tail_asked=pattern.tail_asked or bool(tail)
            )
        else:
            pattern = _continue_run(pattern, index, offset, end, now)
        run = pattern.runs[pattern.latest]
        run, ahead = self._read_on(run, pattern.trust, size)
        if ahead:
            # A window that follows another one: the reader has read what was asked for.
            trust = pattern.trust + bool(pattern.runs[pattern.latest].window)
            pattern = pattern._replace(
                runs=_put(pattern.runs, pattern.latest, run), trust=min(trust, TRUST_MAX)
            )
            wanted += ahead
        return pattern, wanted

    def _read_on(self, run: Run, trust: int, size: int) -> tuple[Run, list[Range]]:
        """The run with its next window, when it has earned one and is half through the last."""
        if run.window:
            window = run.window * 2
        elif not self._trusted(run, trust):
            return run, []
        else:
            window = WINDOW_BYTES_MIN
        window = min(window, self.window_bytes_max, max(WINDOW_BYTES_MIN, run.read))
        if run.backwards:
            asked = min(run.ahead, run.start) if run.window else run.start
            goal = max(run.start - window, 0) // MIB * MIB
            if 2 * (run.start - asked) >= max(run.window, 1) or goal >= asked:
                return run, []
            return run._replace(window=window, ahead=goal, left=False), [Range(goal, asked)]
        asked = max(run.ahead, run.end)
        goal = min(-(-(run.end + window) // MIB) * MIB, size)
        if 2 * (asked - run.end) >= max(run.window, 1) or goal <= asked:
            return run, []
        return run._replace(window=window, ahead=goal, left=False), [Range(asked, goal)]

    def _trusted(self, run: Run, trust: int) -> bool:
        sides = sorted((run.origin - run.start, run.end - run.origin))
        if 3 * sides[0] > sides[1]:
            return False  # no direction yet: the first requests came in disorder
        if run.start == 0 and not run.backwards and trust >= 0:
            return run.read >= HEAD_EVIDENCE_BYTES
        evidence = self._evidence_bytes
        return run.read > (evidence >> trust if trust >= 0 else evidence << -trust)

    @property
    def _evidence_bytes(self) -> int:
        return ISOLATED_BYTES + self.kernel_ahead_bytes

    def _follow_stride(
        self, pattern: ReadPattern, offset: int, size: int
    ) -> tuple[Stride | None, list[Range]]:
        """The stride after a run has begun at `offset`, and the runs to ask for."""
        stride = pattern.stride
        if stride is None:
            stride = _stride_in(pattern.runs, offset, self._evidence_bytes)
            if stride is None:
                return None, []
        else:
            last = pattern.runs[pattern.latest]
            if abs(last.start - stride.at) <= 2 * PAGE_BYTES:  # all of it is known by now
                stride = stride._replace(at=last.start, length=last.end - last.start)
            number = stride.steps_to(offset)
            if number == 0:
                return stride, []  # a late request of the run at `at`
            if number is None or number > stride.asked + 1:
                depth = stride.depth // 2
                return stride._replace(depth=depth) if depth else None, []
            expected = stride.at + number * stride.step
            stride = stride._replace(
                at=offset if abs(offset - expected) <= PAGE_BYTES else expected,
                steps=stride.steps + number,
                asked=max(stride.asked - number, 0),
            )
        if abs(stride.step) <= PAGE_BYTES:
            return None, []  # it has crept to a halt
        if 2 * stride.asked > stride.depth:
            return stride, []
        depth = min(
            stride.depth * 2,
            STEPS_MAX,
            stride.steps + 1,
            max(self.window_bytes_max // stride.length, 1),
        )
        wanted = []
        for number in range(stride.asked + 1, depth + 1):
            start = stride.at + number * stride.step
            end = min(start + stride.length, size)
            if max(start, 0) < end:
                wanted.append(Range(max(start, 0), end))
        return stride._replace(asked=max(depth, stride.asked), depth=depth), wanted


def _run_of(runs: tuple[Run, ...], offset: int, end: int, now: float, slack: int) -> int | None:
    """Index of the run that a read belongs to: one that it touches, else one that it is near.

    A reader that has gone back from the front of its run by more than `2 * slack` starts anew.
    """
    near = None
    for index in range(len(runs) - 1, -1, -1):
        run = runs[index]
        if not run.window:
            if run.start <= end and offset <= run.end and now - run.touched <= IDLE_S:
                return index
        elif run.backwards:
            if offset > run.start + 2 * slack:
                continue
            if run.start <= end and offset <= run.end:
                return index
            if min(run.ahead, run.start - slack) <= end and offset <= run.end:
                near = index
        else:
            if end < run.end - 2 * slack:
                continue
            if run.start <= end and offset <= run.end:
                return index
            if run.start <= end and offset <= max(run.ahead, run.end + slack):
                near = index
    return near


def _continue_run(
    pattern: ReadPattern, index: int, offset: int, end: int, now: float
) -> ReadPattern:
    """The pattern with a read joined to a run, and to it the runs that it now reaches."""
    run = pattern.runs[index]
    start, stop = min(run.start, offset), max(run.end, end)
    read = min(run.read + end - offset, stop - start)
    if read < (stop - start) * DENSITY_MIN:
        fresh = Run(offset, end, offset, end - offset, now)
        trust = max(pattern.trust - 1, TRUST_MIN)
        return pattern._replace(runs=_put(pattern.runs, index, fresh), latest=index, trust=trust)
    trust = pattern.trust
    if run.left:  # it was not left for good
        trust = min(trust + 1, TRUST_MAX)
    run = run._replace(start=start, end=stop, read=read, touched=now, left=False)
    runs = list(pattern.runs)
    runs[index] = run
    for other in range(len(runs) - 1, -1, -1):
        if other != index and runs[other].start <= stop and start <= runs[other].end:
            low, high = sorted((index, other))
            runs[low] = _joined(runs[low], runs[high], now)
            del runs[high]
            index = low
            start, stop = runs[low].start, runs[low].end
    return pattern._replace(runs=tuple(runs), latest=index, trust=trust)


def _joined(older: Run, younger: Run, now: float) -> Run:
    start, end = min(older.start, younger.start), max(older.end, younger.end)
    leader = older if older.window >= younger.window else younger
    read = min(older.read + younger.read, end - start)
    return Run(start, end, older.origin, read, now, leader.window, leader.ahead)


def _begin_run(pattern: ReadPattern, offset: int, end: int, now: float) -> ReadPattern:
    """The pattern with a new run. Runs that this reader has gone back over are forgotten."""
    runs = list(pattern.runs)
    trust = pattern.trust
    if runs:
        last = runs[pattern.latest]
        unread = last.start - last.ahead if last.backwards else last.ahead - last.end
        if last.window and unread > 0 and not last.left:
            trust = max(trust - 1, TRUST_MIN)
            runs[pattern.latest] = last._replace(
                left=True, window=max(last.window // 2, WINDOW_BYTES_MIN)
            )
        runs = [run for run in runs if end < run.start or run.end < offset]
        if len(runs) == RUNS_MAX:
            runs.remove(min(runs, key=lambda run: run.touched))
    runs.append(Run(offset, end, offset, end - offset, now))
    return pattern._replace(runs=tuple(runs), latest=len(runs) - 1, trust=trust)


def _put(runs: tuple[Run, ...], index: int, run: Run) -> tuple[Run, ...]:
    return (*runs[:index], run, *runs[index + 1 :])


def _stride_in(runs: tuple[Run, ...], offset: int, span_min: int) -> Stride | None:
    """The stride that the last runs began and a run at `offset` continues.

    It reaches over `span_min` bytes: less may be one read whose requests come in disorder.
    """
    if len(runs) < 3:
        return None
    last = runs[-1]
    step = last.start - runs[-2].start
    if abs(step) <= PAGE_BYTES:
        return None
    first, steps = last.start, 0
    for run in reversed(runs[:-1]):
        if abs(first - run.start - step) > PAGE_BYTES:
            break
        first, steps = run.start, steps + 1
    if steps < 2:
        return None
    stride = Stride(first, last.start, steps, last.end - last.start, asked=0, depth=1)
    if stride.steps_to(offset) != 1:
        return None
    expected = last.start + stride.step
    at = offset if abs(offset - expected) <= PAGE_BYTES else expected
    return stride._replace(at=at, steps=steps + 1) if abs(at - first) > span_min else None


def _tail_wanted(pattern: ReadPattern, offset: int, end: int, size: int) -> list[Range]:
    """What is left of the tail, when the first run was the head and the second begins there."""
    if pattern.tail_asked or len(pattern.runs) != 1:
        return []
    head = pattern.runs[0]
    if head.start or head.end > MIB or offset < size - min(TAIL_BYTES_MAX, size // 4):
        return []
    return [Range(end, size)] if end < size else []
