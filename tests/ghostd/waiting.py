"""`Threads` that take their time, by a clock that jumps, and remember what they were asked."""

from __future__ import annotations

import trio


class Waiting:
    """Runs everything in the calling task, each kind of work after its delay in seconds."""

    def __init__(self) -> None:
        self.delay_s: dict[str, float] = {}
        self.calls: list[tuple[str, str, tuple]] = []  # kind, name of the function, arguments

    async def run(self, kind, function, *args):
        """See Threads."""
        self.calls.append((kind, getattr(function, "__name__", ""), args))
        await trio.sleep(self.delay_s.get("read" if kind == "stream" else kind, 0))
        return function(*args)

    def fetched(self) -> list[bytes]:
        """The chunks that were read, in order."""
        return [
            chunk_id
            for kind, name, args in self.calls
            if kind in {"read", "stream"} and name == "fetch"
            for chunk_id in args[0]
        ]
