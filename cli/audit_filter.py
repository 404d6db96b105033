"""Which records of the audit trail are meant: what `orbit` and `orbit-ctl audit` share."""

from __future__ import annotations

from typing import Any, Final

import click

EXIT_BROKEN: Final = 3


def _moment(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    from cli import units

    try:
        return None if value is None else units.parse_moment(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def filtered(function: Any) -> Any:
    """The options that choose records: `job`, `since_ns`, `until_ns`, `path`; or None."""
    for option in (
        click.option("--path", help="Source or destination: this one, or what lies below it."),
        click.option("--until", "until_ns", callback=_moment, metavar="TIME"),
        click.option("--since", "since_ns", callback=_moment, metavar="TIME"),
        click.option("--job", type=int, help="Of this job."),
    ):
        function = option(function)
    return function
