"""The guess of the next handle, against a model of OpenSSH's table."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from syncer.remotes.sftp_handles import HandleGuess


class Table:
    """sftp-server's handles: the number that was given back last is used first."""

    def __init__(self) -> None:
        self.free: list[int] = []
        self.count = 0

    def open(self) -> bytes:
        if not self.free:
            self.free.append(self.count)
            self.count += 1
        return self.free.pop().to_bytes(4, "big")

    def close(self, handle: bytes) -> None:
        self.free.append(int.from_bytes(handle, "big"))


STEPS = st.lists(st.tuples(st.sampled_from(["open", "fail", "close", "answer"]), st.integers(0, 9)))


@given(STEPS)
def test_a_guess_is_right_or_a_handle_that_is_not_in_use(steps):
    guess, table = HandleGuess(numbered=True), Table()
    in_use: list[bytes] = []
    answers: deque[tuple[str, bytes | None]] = deque()
    failing = 0  # failed OPENs whose answers are on their way
    for step, number in steps:
        if step in {"open", "fail"}:
            guessed = guess.opening()
            assert guessed is not None
            assert guessed not in in_use
            handle = table.open() if step == "open" else None
            if handle is not None:
                if not failing:
                    assert guessed == handle
                in_use.append(handle)
            failing += handle is None
            answers.append(("opened", handle))
        elif step == "close" and in_use:
            # Only what is known to be open is ever closed.
            unanswered = {handle for kind, handle in answers if kind == "opened"}
            known = [handle for handle in in_use if handle not in unanswered]
            if known:
                handle = known[number % len(known)]
                in_use.remove(handle)
                table.close(handle)
                guess.closing(handle)
                answers.append(("closed", handle))
        elif answers:
            kind, handle = answers.popleft()
            if kind == "opened":
                failing -= handle is None
                guess.opened(handle)
            else:
                guess.closed()


def test_a_server_that_numbers_otherwise_is_not_guessed():
    guess = HandleGuess(numbered=True)
    assert guess.opening() == bytes(4)
    guess.opened(b"some other handle")
    assert guess.opening() is None
    guess.closing(b"some other handle")
    guess.closed()
    guess.opened(b"another")
    assert guess.opening() is None


def test_an_unknown_server_is_not_guessed():
    assert HandleGuess(numbered=False).opening() is None
