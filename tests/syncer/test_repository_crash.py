"""Processes that use a repository are killed at every act: what was recorded is whole."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.syncer import crashing

_FORK = multiprocessing.get_context("forkserver")  # each begins without threads
_FORK.set_forkserver_preload(["tests.syncer.crashing"])


def run(target: Callable[..., None], *args: object) -> int:
    process = _FORK.Process(target=target, args=args)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def kill_and_look(tmp_path: Path, kind: str, kill_at: int, cache: str) -> bool:
    """Kill a process at an act, and look; whether it was killed."""
    base = tmp_path / f"{kill_at}"
    repository = base / "repository"
    location = place(repository, kind)
    code = run(crashing.live, base, location, kill_at)
    assert code in {0, -signal.SIGKILL}
    if (repository / "repository.json").exists():
        assert run(crashing.look, base, location, base / cache) == 0
    # And to its end, on the same machine.
    assert code == 0 or run(crashing.live, base, location, 0) == 0
    shutil.rmtree(base)
    return code != 0


def place(folder: Path, kind: str) -> str:
    """Where a repository is: as a folder, or as if it were a remote one."""
    folder.mkdir(parents=True)
    return str(folder) if kind == "local" else f"file://{folder}"


@pytest.fixture
def acts(tmp_path: Path, kind: str) -> int:
    base = tmp_path / "whole"
    assert run(crashing.live, base, place(base / "repository", kind), 0) == 0
    return int((base / "acts").read_text())


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_killed_now_and_then(tmp_path: Path, kind: str, acts: int) -> None:
    assert acts > 100
    step = acts // 4
    for number, kill_at in enumerate(range(step // 2, acts, step)):
        # Threads do not take the same turns twice: the last acts may not be reached.
        killed = kill_and_look(tmp_path, kind, kill_at, "cache" if number % 2 else "another")
        assert killed or kill_at > acts * 0.8


@pytest.mark.soak
@pytest.mark.parametrize("cache", ["cache", "another"])
@pytest.mark.parametrize("kind", ["local", "remote"])
def test_killed_at_every_act(tmp_path: Path, kind: str, cache: str, acts: int) -> None:
    for kill_at in range(1, acts):
        kill_and_look(tmp_path, kind, kill_at, cache)
