"""`orbit-ctl audit`: what the daemon's jobs have changed, as a chain of records."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import click

from cli.audit_filter import EXIT_BROKEN, filtered
from cli.projections import CALL_TIMEOUT_S, Answer, Ways

if TYPE_CHECKING:
    from cli.orbit_ctl import Session

_PAGE: Final = 5_000


def _records(ways: Ways, given: dict[str, Any]) -> Iterator[Answer]:
    asked = {name: value for name, value in given.items() if value is not None}
    after = 0
    while True:
        page = _page(ways, {**asked, "after": after, "limit": _PAGE})
        yield from page["records"]
        if len(page["records"]) < _PAGE:
            return
        after = page["after"]


def _page(ways: Ways, asked: dict[str, Any]) -> Answer:
    return ways.call(lambda client: client.get(f"/v1/audit?{urlencode(asked)}", CALL_TIMEOUT_S))


@click.group()
def audit() -> None:
    """The audit trail: what was changed, by which job, in a chain that shows tampering."""


@audit.command()
@click.pass_obj
def verify(session: Session) -> None:
    """Look whether every record is there and unchanged (exit code 3 if not)."""
    from cli.job_render import audit_report

    ways = Ways(session)
    report = ways.call(lambda client: client.get("/v1/audit/verify", CALL_TIMEOUT_S))
    ways.show(report, audit_report)
    if report["problem"] is not None:
        raise SystemExit(EXIT_BROKEN)


@audit.command()
@filtered
@click.pass_obj
def show(session: Session, /, **given: Any) -> None:
    """Show records, oldest first."""
    from cli.job_render import audit_line

    ways = Ways(session)
    for record in _records(ways, given):
        ways.show(record, audit_line)


@audit.command()
@filtered
@click.option("--output", type=click.Path(path_type=Path), help="Default: standard output.")
@click.pass_obj
def export(session: Session, /, output: Path | None, **given: Any) -> None:
    """Write records for other programs: one JSON object a line."""
    ways = Ways(session)
    with ExitStack() as stack:
        stream = sys.stdout if output is None else stack.enter_context(output.open("w"))
        for record in _records(ways, given):
            stream.write(json.dumps(record) + "\n")
