"""What sentences of the syncer name on the command line is there, spelled so, in both programs."""

import ast
import re
from pathlib import Path

import pytest

from cli.orbit import main as orbit
from cli.orbit_ctl import main as orbit_ctl
from cli.verbs import GROUPS

SYNCER = Path(__file__).parents[2] / "syncer"
OF_ITS_OWN = {"worker.py"}  # has a command line that no user types
OF_ONE = {"--repo": orbit, "--on-conflict": orbit_ctl}  # the daemon has a store; it alone pushes
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def flags_of(program):
    """The options of all verbs, those that are rewritten included: a help text names them."""
    found = set()
    for verb in GROUPS.keys() & program.commands.keys():
        for parameter in program.commands[verb].params:
            found.update(parameter.opts, parameter.secondary_opts)
            found.update(_FLAG.findall(getattr(parameter, "help", None) or ""))
    return found


def flags_in(path):
    """Those in texts, with their lines; docstrings count."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for flag in _FLAG.findall(node.value):
                yield flag, node.lineno


SOURCES = [path for path in sorted(SYNCER.rglob("*.py")) if path.name not in OF_ITS_OWN]


@pytest.mark.parametrize("program", [orbit, orbit_ctl], ids=["orbit", "orbit-ctl"])
def test_every_flag_that_is_named_is_there(program):
    known = flags_of(program) | {flag for flag, other in OF_ONE.items() if other is not program}
    unknown = {
        f"{path.name}:{line}": flag
        for path in SOURCES
        for flag, line in flags_in(path)
        if flag not in known
    }
    assert unknown == {}


def test_flags_are_found():
    assert len({flag for flag, _ in flags_in(SYNCER / "guidance.py")}) > 20
