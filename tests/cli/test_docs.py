"""The documentation names what there is: commands and their options, tests, modules, pages."""

import re
import shlex
from pathlib import Path

import click
import pytest

from cli.jobs import job_fields
from cli.orbit import main as orbit
from cli.orbit_ctl import main as orbit_ctl
from cli.orbit_session import Session
from cli.verbs import GROUPS
from syncer.jobs_spec import spec_of

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TESTS = sorted(path for path in ROOT.glob("tests/*/**/*.py") if "node_modules" not in path.parts)
PROGRAMS = {"orbit": orbit, "orbit-ctl": orbit_ctl}
SHOWN = {"verbose", "quiet", "as_json", "explain"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
_COMMAND = re.compile(r"orbit(-ctl)? [a-z-]")
_PLACEHOLDER = re.compile(r"[…\[|]")  # the line is a pattern of command lines
_MODULE = re.compile(r"(?:blockstore|syncer|ghostd|cli|tests)/[\w/]+\.(?:py|sql)")


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request):
    return request.param


def spans(text):
    return _SPAN.findall(_FENCE.sub("", text))


def commands(text):
    """Command lines of ours, and whether each can be typed as it stands.

    Two spaces, or a `#`, end those in blocks: what follows explains them.
    """
    for language, body in _FENCE.findall(text):
        if language in {"", "sh"}:
            for line in body.replace("\\\n", " ").splitlines():
                if _COMMAND.match(line):
                    words = shlex.split(re.sub(r"  .*", "", line), comments=True)
                    yield words, not _PLACEHOLDER.search(" ".join(words))
    for span in spans(text):
        if _COMMAND.match(span) and not span.endswith(" "):  # those are bytes of a format
            yield shlex.split(span), False


def subcommand(words):
    """The command that is meant, and the words behind its name. Raises UsageError."""
    command, rest = PROGRAMS[words[0]], words[1:]
    while isinstance(command, click.Group) and rest:
        context = command.make_context(command.name, list(rest))
        name = rest[-len(context.args) - 1] if len(context.args) < len(rest) else "copy"
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"there is no {name}")
        command, rest = found, context.args
    return command, rest


def unknown_options(command, rest):
    """Options among the words that the command has not."""
    known = {"--help"}
    for parameter in command.params:
        known.update(parameter.opts, parameter.secondary_opts)
        # Those that are rewritten before click sees them are named in the help of what they become.
        known.update(re.findall(r"--[a-z-]+", getattr(parameter, "help", None) or ""))
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]


def test_every_command_line_is_understood(page, monkeypatch):
    monkeypatch.setenv("ORBIT_REPOSITORY", "repo")
    for words, whole in commands(page.read_text()):
        if not whole:
            named = [word for word in words if not _PLACEHOLDER.search(word)]
            assert unknown_options(*subcommand(named)) == [], words
            continue
        command, rest = subcommand(words)
        given = command.make_context(command.name, list(rest)).params
        if command.name in GROUPS and (given.get("places") or given.get("source")):
            given = {name: value for name, value in given.items() if name not in SHOWN}
            if words[0] == "orbit":
                Session().spec_of(command.name, given)
            else:
                spec_of(job_fields(command.name, given))


def test_the_readme_shows_commands_and_mistakes_would_be_noticed():
    assert len(list(commands((ROOT / "README.md").read_text()))) > 20
    with pytest.raises(click.UsageError):
        subcommand(["orbit", "frobnicate"])
    assert unknown_options(*subcommand(["orbit", "copy", "--frobnicate"])) == ["--frobnicate"]


def test_every_test_that_is_named_is_there(page):
    for span in spans(page.read_text()):
        file, _, function = span.rpartition("::")
        name = Path(file or span).name
        files = [path for path in TESTS if path.name == name] if name.endswith(".py") else TESTS
        if re.fullmatch(r"test_\w+\.py", name):
            assert files, span
        if re.fullmatch(r"test_\w+", function):
            assert any(f"def {function}(" in path.read_text() for path in files), span


def test_every_module_that_is_named_is_there(page):
    for span in spans(page.read_text()):
        if found := _MODULE.match(span):
            assert (ROOT / found[0]).exists(), span


def test_every_page_that_is_linked_is_there(page):
    for target in _LINK.findall(_FENCE.sub("", page.read_text())):
        assert (page.parent / target).exists(), target
