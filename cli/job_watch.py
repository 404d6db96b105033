"""Watches a job of the daemon: draws how far it is, prints what it tells, ends as it ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from cli.job_render import event_text, progress_lines, report_lines

if TYPE_CHECKING:
    from rich.live import Live

Answer = dict[str, Any]

ENDED: Final = frozenset({"done", "partly", "failed", "cancelled"})
_POLL_S: Final = 0.2
_DRAW_AFTER_S: Final = 0.5  # what ends sooner needs no picture, nor the library that draws it
_FAILED: Final = frozenset({"file.failed", "difference"})
_EXIT: Final = {"done": 0, "partly": 1, "failed": 2, "cancelled": 2}


@dataclass(frozen=True, slots=True)
class How:
    """How a job is shown."""

    verbose: bool = False
    quiet: bool = False
    as_json: bool = False
    explain: bool = False


class Picture:
    """Progress on a terminal; nothing elsewhere."""

    def __init__(self, *, draws: bool) -> None:
        self._draws = draws and sys.stderr.isatty()
        self._live: Live | None = None

    def draw(self, progress: Answer) -> None:
        """Show a job's progress, unless it has only just begun."""
        if not self._draws or progress.get("elapsed_s", 0.0) < _DRAW_AFTER_S:
            return
        from rich.text import Text

        text = Text("\n".join(progress_lines(progress)), overflow="ellipsis")
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(text, console=console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(text, refresh=True)

    def say(self, text: str, *, err: bool = False) -> None:
        """Print a line above the picture."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=err)

    def end(self) -> None:
        """Take the picture away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


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
        self._picture = Picture(draws=not (how.as_json or how.quiet))

    def run(self) -> int:
        """Watch; the exit code."""
        after, shown = 0, None
        asked = False
        while True:
            try:
                answer = self._log(after)
                for event in answer["events"]:
                    self._tell(event)
                job = answer["job"]
                if answer["after"] != after:
                    after = answer["after"]
                    continue  # there may be more
                if job["state"] in ENDED or job["state"] in {"paused", "scheduled"}:
                    return self._end(job)
                if job["progress"] and job["progress"] != shown:
                    shown = job["progress"]
                    self._show(shown)
                time.sleep(_POLL_S)
            except KeyboardInterrupt:
                if asked or not self._ask():
                    self._picture.end()
                    self._detached()
                    return 0
                asked = True

    def _show(self, progress: Answer) -> None:
        if self._how.as_json:
            click.echo(json.dumps({"event": "progress", **progress}))
        else:
            self._picture.draw(progress)

    def _tell(self, event: Answer) -> None:
        if self._how.as_json:
            click.echo(json.dumps(event))
            return
        name = event["event"]
        if name == "notice":
            if not self._how.quiet:
                self._picture.say(f"note: {event['message']}", err=True)
        elif name == "explained":
            if self._how.explain:
                self._picture.say(event["message"], err=True)
        elif name in _FAILED:
            if self._how.verbose:
                self._picture.say(event_text(event), err=True)
        elif name.startswith("would.") or (self._how.verbose and not name.startswith("job.")):
            self._picture.say(event_text(event))

    def _end(self, job: Answer) -> int:
        self._picture.end()
        report = job["report"]
        if self._how.as_json:
            click.echo(json.dumps({"event": "report", "job": self._number, **report}))
        elif report:
            code = report["exit_code"]
            if not self._how.quiet or code:
                lines = report_lines(report, verbose=self._how.verbose)
                click.echo("\n".join(lines), err=self._how.quiet)
        else:
            why = f": {job['reason']}" if job["reason"] else ""
            click.echo(f"job {self._number} is {job['state']}{why}", err=True)
        return int(report.get("exit_code", _EXIT.get(job["state"], 0)))

    def _ask(self) -> bool:
        """What Ctrl-C means: whether to go on watching."""
        self._picture.end()
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
