"""`orbit`: copies, syncs, backs up, restores and verifies, with no daemon and no set-up.

Imports here are what `--help` costs; the rest is imported by the command that needs it.
"""

from __future__ import annotations

from typing import Any, Final

import click

from cli.orbit_audit import audit
from cli.orbit_jobs import jobs
from cli.orbit_session import Session
from cli.orbit_snapshots import snapshots
from cli.verbs import VerbCommand, running, verb_options

EPILOG: Final = """\b
Places:
  /path, path              a local file or folder
  sftp://HOST/PATH, s3://BUCKET/PREFIX, smb://, az://, gs://, http(s)://, file://
  repo:LOCATION            a repository; LOCATION is a folder or a URL, `backup` takes it alone
  repo:LOCATION#NAME/path  a snapshot in it; NAME may be latest or latest:TAG
  NAME[:PATH]              likewise with --repo; latest:PATH, latest:TAG:PATH
What lies in SRC will lie in DST under the same names, with or without a slash at the end; a single
file goes into DST if that is a directory.

\b
Exit codes:
  0  done
  1  partly done: the report says what is missing
  2  nothing was done, or the command line is wrong
  3  data did not verify
"""
_FIRST_WORDS: Final = frozenset({"-h", "--help", "--version"})


class _Group(click.Group):
    """`orbit --source A --dest B …` copies, as `orbit copy` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put in the verb that is meant."""
        if args and args[0].startswith("-") and args[0] not in _FIRST_WORDS:
            args = ["copy", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="orbit-ghostfs")
@click.pass_context
def main(context: click.Context) -> None:
    """Copy, sync, back up, restore and verify files, between any two places."""
    context.obj = Session()


_repository = click.option(
    "--repo", envvar="ORBIT_REPOSITORY", metavar="LOCATION",
    help="The repository: a folder or a URL. Default: $ORBIT_REPOSITORY.",
)  # fmt: skip


@main.command(cls=VerbCommand)
@verb_options("copy")
@running
@click.pass_obj
def copy(session: Session, /, **given: Any) -> None:
    """Copy SRC to DST. What is there and newer stays; nothing is deleted."""
    session.run("copy", given)


@main.command(cls=VerbCommand)
@verb_options("sync")
@running
@click.pass_obj
def sync(session: Session, /, **given: Any) -> None:
    """Make DST like SRC, as --mode says."""
    session.run("sync", given)


@main.command(cls=VerbCommand)
@verb_options("backup")
@_repository
@running
@click.pass_obj
def backup(session: Session, /, **given: Any) -> None:
    """Keep SRC as it is now as a snapshot in a repository, which is made if need be."""
    session.run("backup", given)


@main.command(cls=VerbCommand)
@verb_options("restore")
@_repository
@running
@click.pass_obj
def restore(session: Session, /, **given: Any) -> None:
    """Bring SNAPSHOT[:PATH] back to DST, with all its attributes."""
    session.run("restore", given)


@main.command(cls=VerbCommand)
@verb_options("verify")
@_repository
@running
@click.pass_obj
def verify(session: Session, /, **given: Any) -> None:
    """Compare two places, or read a snapshot or repository whole (exit code 3)."""
    session.run("verify", given)


@main.command("filter-test", cls=VerbCommand)
@click.argument("path")
@click.option("--filter", "filters", multiple=True, metavar="RULE", help="As of copy.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def filter_test(session: Session, path: str, filters: tuple[str, ...], *, as_json: bool) -> None:
    """Say what filters do with PATH, relative to the source, and which rule decides.

    Where PATH is there, its kind, size and age count; else a slash at its end makes it a directory.
    """
    session.filter_test(path, filters, as_json=as_json)


@main.command()
@click.argument("location")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def init(session: Session, location: str, *, as_json: bool) -> None:
    """Make a repository at LOCATION: a folder or a URL."""
    session.init(location, as_json=as_json)


@main.command()
@click.argument("location")
@click.option("--force", is_flag=True, help="Locks of living processes, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def unlock(session: Session, location: str, *, force: bool, as_json: bool) -> None:
    """Remove the locks that dead processes left in a repository."""
    session.unlock(location, force=force, as_json=as_json)


main.add_command(jobs)
main.add_command(snapshots)
main.add_command(audit)


if __name__ == "__main__":
    main()
