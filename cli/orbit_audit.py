"""`orbit audit`: what this user's jobs have changed, as a chain of records."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.audit_filter import EXIT_BROKEN, filtered

if TYPE_CHECKING:
    from cli.orbit_session import Session
    from syncer.audit_verify import AuditFilter

_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def _wanted(given: dict[str, Any]) -> AuditFilter:
    from syncer.audit_verify import AuditFilter

    return AuditFilter(given["job"], given["since_ns"], given["until_ns"], given["path"] or "")


@click.group()
def audit() -> None:
    """The audit trail: what was changed, by which job, in a chain that shows tampering."""


@audit.command()
@_json
@click.pass_obj
def verify(session: Session, *, as_json: bool) -> None:
    """Look whether every record is there and unchanged (exit code 3 if not)."""
    from dataclasses import asdict

    from cli.job_render import audit_report
    from syncer.audit_verify import verify

    report = asdict(session.guarded(lambda: verify(session.audit_folder)))
    click.echo(json.dumps(report) if as_json else audit_report(report))
    if report["problem"] is not None:
        raise SystemExit(EXIT_BROKEN)


@audit.command()
@filtered
@_json
@click.pass_obj
def show(session: Session, /, *, as_json: bool, **given: Any) -> None:
    """Show records, oldest first."""
    from cli.job_render import audit_line
    from syncer.audit_verify import show

    def tell() -> None:
        for fields in show(session.audit_folder, _wanted(given)):
            click.echo(json.dumps(fields) if as_json else audit_line(fields))

    session.guarded(tell)


@audit.command()
@filtered
@click.option("--csv", "as_csv", is_flag=True, help="A table, not lines of JSON.")
@click.option("--output", type=click.Path(path_type=Path), help="Default: standard output.")
@click.pass_obj
def export(session: Session, /, output: Path | None, *, as_csv: bool, **given: Any) -> None:
    """Write records for other programs."""
    from syncer.audit_verify import export

    def write() -> None:
        if output is None:
            export(session.audit_folder, sys.stdout, _wanted(given), as_csv=as_csv)
        else:
            with output.open("w", newline="") as stream:
                export(session.audit_folder, stream, _wanted(given), as_csv=as_csv)

    session.guarded(write)
