"""A remote whose requests fail as scripted: before they are done, after, or never to return."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from typing import TypeVar

import trio

from syncer.remotes.errors import Busy, Garbled, RemoteError, Unreachable
from syncer.remotes.remote import Remote
from syncer.remotes.wrapper import Call, Verb, Wrapper

T = TypeVar("T")


class Fate(enum.Enum):
    """Of one request."""

    GOOD = "good"
    LOST = "lost before it was done"
    ANSWER_LOST = "done, but its answer was lost"
    BUSY = "not done: busy"
    GARBLED = "done, its answer garbled"
    SWALLOWED = "no answer, ever"
    SWALLOWED_ANSWER = "done, no answer, ever"


FAULTS = tuple(fate for fate in Fate if fate is not Fate.GOOD)


class Unreliable(Wrapper):
    """Each request meets the next fate of the script, then all are good."""

    def __init__(self, inner: Remote, script: Iterable[Fate] = ()) -> None:
        super().__init__(inner)
        self.script = deque(script)
        self.asked: list[Verb] = []
        self.retry_after_s: float | None = None
        self.down: RemoteError | None = None  # raised for every request while set

    async def _call(self, call: Call[T]) -> T:
        self.asked.append(call.verb)
        await trio.lowlevel.checkpoint()
        if self.down is not None:
            raise self.down
        fate = self.script.popleft() if self.script else Fate.GOOD
        if fate is Fate.BUSY:
            raise Busy("busy", self.retry_after_s)
        if fate is Fate.LOST:
            raise Unreachable("lost")
        if fate is Fate.SWALLOWED:
            await trio.sleep_forever()
        result = await call.go()
        if fate is Fate.ANSWER_LOST:
            raise Unreachable("answer lost")
        if fate is Fate.GARBLED:
            raise Garbled("garbled")
        if fate is Fate.SWALLOWED_ANSWER:
            await trio.sleep_forever()
        return result
