"""Shows a job to the user while it runs: its events, how far it is, and its report."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from cli.job_render import event_text, progress_lines, report_lines

if TYPE_CHECKING:
    from rich.live import Live

Answer = dict[str, Any]

_DRAW_AFTER_S: Final = 0.5  # what ends sooner needs no picture, nor the library that draws it
_FAILED: Final = frozenset({"file.failed", "difference"})


@dataclass(frozen=True, slots=True)
class How:
    """How a job is shown."""

    verbose: bool = False
    quiet: bool = False
    as_json: bool = False
    explain: bool = False


class Screen:
    """Lines of text or JSON; on a terminal, below them, a picture of the progress."""

    def __init__(self, how: How) -> None:
        self._how = how
        self._draws = sys.stderr.isatty() and not (how.as_json or how.quiet)
        self._live: Live | None = None

    def event(self, event: Answer) -> None:
        """Show what happened, if it is to be shown."""
        if self._how.as_json:
            self._echo(json.dumps(event))
            return
        name = event["event"]
        if name == "notice":
            if not self._how.quiet:
                self._say(f"note: {event.get('message', '')}", err=True)
        elif name == "explained":
            if self._how.explain:
                self._say(event.get("message", ""), err=True)
        elif name in _FAILED:
            if self._how.verbose:
                self._say(event_text(event), err=True)
        elif name.startswith("would.") or (self._how.verbose and not name.startswith("job.")):
            self._say(event_text(event))

    def progress(self, progress: Answer) -> None:
        """Show how far the job is, unless it has only just begun."""
        if self._how.as_json:
            self._echo(json.dumps({"event": "progress", **progress}))
        elif self._draws and progress.get("elapsed_s", 0.0) >= _DRAW_AFTER_S:
            self._draw(progress)

    def _draw(self, progress: Answer) -> None:
        from rich.text import Text

        text = Text("\n".join(progress_lines(progress)), overflow="ellipsis")
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(text, console=console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(text, refresh=True)

    def _say(self, text: str, *, err: bool = False) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            self._echo(text, err=err)

    @staticmethod
    def _echo(text: str, *, err: bool = False) -> None:
        """Print; whoever stops reading does not end the job."""
        try:
            click.echo(text, err=err)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, (sys.stderr if err else sys.stdout).fileno())
            os.close(nowhere)

    def pause(self) -> None:
        """Take the picture away until there is more progress."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def report(self, report: Answer) -> None:
        """Show the end."""
        self.pause()
        if self._how.as_json:
            self._echo(json.dumps({"event": "report", **report}))
        elif not self._how.quiet or report["exit_code"]:
            lines = report_lines(report, verbose=self._how.verbose)
            self._echo("\n".join(lines), err=self._how.quiet)
