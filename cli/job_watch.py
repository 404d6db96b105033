"""Watches a job of the daemon: draws how far it is, prints what it tells, ends as it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

import click

from cli.job_render import ENDED, exit_code
from cli.job_screen import Answer, How, Screen

_POLL_S: Final = 0.2


class Watch:
    """One job until it ends, is paused, or is left alone."""

    def __init__(
        self,
        number: int,
        how: How,
        log: Callable[[int], Answer],
        want: Callable[[str], Answer],
    ) -> None:
        """`log`: the job and its log behind a line; `want`: ask for something."""
        self._number = number
        self._how = how
        self._log = log
        self._want = want
        self._screen = Screen(how)

    def run(self) -> int:
        """Watch; the exit code."""
        after, shown = 0, None
        asked = False
        while True:
            try:
                answer = self._log(after)
                for event in answer["events"]:
                    self._screen.event(event)
                job = answer["job"]
                if answer["after"] != after:
                    after = answer["after"]
                    continue  # there may be more
                if job["state"] in ENDED or job["state"] in {"paused", "scheduled"}:
                    return self._end(job)
                if job["progress"] and job["progress"] != shown:
                    shown = job["progress"]
                    self._screen.progress(shown)
                time.sleep(_POLL_S)
            except KeyboardInterrupt:
                if asked or not self._ask():
                    self._screen.pause()
                    self._detached()
                    return 0
                asked = True

    def _end(self, job: Answer) -> int:
        report = job["report"]
        if report or self._how.as_json:
            self._screen.report({"job": self._number, **report})
        else:
            self._screen.pause()
            why = f": {job['reason']}" if job["reason"] else ""
            click.echo(f"job {self._number} is {job['state']}{why}", err=True)
        return exit_code(job)

    def _ask(self) -> bool:
        """What Ctrl-C means: whether to go on watching."""
        self._screen.pause()
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            self._want("cancel")
            return True
        click.echo("\n(d)etach and leave it running, (c)ancel, or go on? ", err=True, nl=False)
        try:
            answer = sys.stdin.readline().strip().lower()[:1]
        except KeyboardInterrupt:
            answer = "c"
        if answer == "c":
            self._want("cancel")
        return answer != "d"

    def _detached(self) -> None:
        click.echo(f"job {self._number} goes on: `orbit-ctl jobs show {self._number}`", err=True)
