"""Fixtures of several files."""

from pathlib import Path

import pytest


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """Two empty folders: source and target."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    return source, target
