"""docs/semantics.md names a test beside each promise: every one of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_promises_name_exists():
    text = (ROOT / "docs" / "semantics.md").read_text()
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 50
    for file, function in named:
        path = ROOT / file if "/" in file else ROOT / "tests" / "mount" / file
        assert f"def {function}(" in path.read_text() or not function, (file, function)
