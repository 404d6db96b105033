"""`orbit-ctl`: steers a running daemon over its socket.

Imports here are what `--help` costs; the rest is imported by the command that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from cli.audit import audit
from cli.jobs import COMMANDS as JOB_COMMANDS
from cli.projections import COMMANDS
from cli.snapshots import snapshot
from orbit_socket import default_socket

if TYPE_CHECKING:
    from cli.client import CallFailed, Client

EXIT_FAILED: Final = 1  # 2 is click's, for a wrong command line
EXIT_ABSENT: Final = 3
EXIT_DAMAGED: Final = 4
EXIT_TIMEOUT: Final = 5

# The daemon answers from memory; more than a second means that its process gets no time at all.
QUESTION_TIMEOUT_S: Final = 5.0
# Longer than any check takes; the daemon's own limit is the same.
DAY_S: Final = 86_400.0
# The daemon gives up first and says why; this much later the client does.
GRACE_S: Final = 5.0

EPILOG = """\b
Exit codes:
  0  done
  1  the daemon refused or failed, with its reason on stderr
  2  the command line is wrong
  3  no daemon listens on the socket
  4  check: something is damaged
  5  no answer, or no result, in time; also from a remote
copy, sync, backup, restore, verify and push end as their job does: 0 done, 1 partly,
2 nothing done, 3 data did not verify.
130  a warm-up or pin was stopped with Ctrl-C
"""


@dataclass(frozen=True, slots=True)
class Session:
    """The options before the command."""

    socket: Path
    as_json: bool

    def client(self) -> Client:
        """Return the way to the daemon."""
        from cli.client import Client

        return Client(self.socket)

    def run(
        self, call: Callable[[Client], dict[str, Any]], render: Callable[[dict[str, Any]], str]
    ) -> dict[str, Any]:
        """Make the call and print its answer; ends the program when the call fails."""
        from cli.client import CallFailed

        try:
            answer = call(self.client())
        except CallFailed as failure:
            self.fail(failure)
        click.echo(json.dumps(answer) if self.as_json else render(answer))
        return answer

    def fail(self, failure: CallFailed) -> NoReturn:
        """Print the failure and end the program with its exit code."""
        if self.as_json:
            problem = {"error": failure.error, "message": failure.message, "hint": failure.hint}
            click.echo(json.dumps(problem))
        else:
            from cli.render import plain

            click.echo(f"orbit-ctl: {plain(failure.message)}", err=True)
            for line in failure.hint.splitlines():
                click.echo(plain(line), err=True)
        raise SystemExit(failure.exit_code)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="The daemon's socket. Default: $ORBIT_SOCKET, else /run/orbit/ghostd.sock for root,"
    " $XDG_RUNTIME_DIR/orbit/ghostd.sock for others.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(package_name="orbit-ghostfs")
@click.pass_context
def main(context: click.Context, socket_path: Path | None, *, as_json: bool) -> None:
    """Steer a running ghostd: what it stores, and the remote trees that it shows."""
    context.obj = Session(socket_path or default_socket(), as_json)


@main.command()
@click.pass_obj
def status(session: Session) -> None:
    """Say how the daemon is; answers while everything else is stuck."""
    from cli import render

    session.run(lambda client: client.get("/v1/status", QUESTION_TIMEOUT_S), render.status)


@main.command()
@click.pass_obj
def stats(session: Session) -> None:
    """Show counters since the start: requests, store, cache, commits, memory."""
    from cli import render

    session.run(lambda client: client.get("/v1/stats", QUESTION_TIMEOUT_S), render.stats)


@main.command()
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait.")
@click.pass_obj
def flush(session: Session, timeout_s: float) -> None:
    """Return when everything done so far is on the disk."""
    from cli import render

    body: dict[str, object] = {"timeout_s": timeout_s}
    session.run(lambda client: client.post("/v1/flush", body, timeout_s + GRACE_S), render.flush)


@main.command()
@click.option("--data", is_flag=True, help="Read every chunk back, too.")
@click.pass_obj
def check(session: Session, *, data: bool) -> None:
    """Look at every invariant and name damaged files (exit code 4).

    Interrupting waits no longer, but the daemon goes on; asking again joins the running check.
    """
    from cli import render

    body: dict[str, object] = {"data": data}
    answer = session.run(lambda client: client.post("/v1/check", body, DAY_S), render.check)
    if not answer["ok"]:
        raise SystemExit(EXIT_DAMAGED)


@main.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
@click.option(
    "--waste-max",
    type=click.FloatRange(0, 1),
    help="Rewrite packs with a larger share of dead bytes than this. Default: as configured.",
)
@click.pass_obj
def collect(session: Session, *, dry_run: bool, waste_max: float | None) -> None:
    """Free the space of chunks that no file uses."""
    from cli import render

    body: dict[str, object] = {"dry_run": dry_run, "waste_max": waste_max}
    session.run(lambda client: client.post("/v1/collect", body, DAY_S), render.collect)


@main.command()
@click.option("--no-wait", is_flag=True, help="Return when the stop has begun.")
@click.option("--timeout", "timeout_s", default=120.0, show_default=True, help="Seconds to wait.")
@click.pass_obj
def stop(session: Session, *, no_wait: bool, timeout_s: float) -> None:
    """Flush, commit, unmount and end the daemon."""

    def call(client: Client) -> dict[str, Any]:
        from cli.client import ConnectionLost, DaemonSilent

        if no_wait:
            return client.post("/v1/stop", {}, QUESTION_TIMEOUT_S) | {"ended": False}
        process = client.process()
        # A quick daemon is gone before its answer is out; what counts is that it ends.
        with suppress(ConnectionLost):
            client.post("/v1/stop", {}, QUESTION_TIMEOUT_S)
        if not process.wait(timeout_s):
            message = f"the daemon (pid {process.pid}) has not ended within {timeout_s:g} s"
            raise DaemonSilent(message, "`orbit-ctl status` shows what it is doing")
        return {"stopping": True, "ended": True}

    def render(answer: dict[str, Any]) -> str:
        return "stopped" if answer["ended"] else "stopping"

    session.run(call, render)


for command in (*COMMANDS, *JOB_COMMANDS):
    main.add_command(command)
main.add_command(snapshot)
main.add_command(audit)


if __name__ == "__main__":
    main()
