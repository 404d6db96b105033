"""What a job's remotes are opened with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from syncer.context import Context
from syncer.remotes.errors import Denied
from syncer.remotes.policy import RemotePolicy

POLICY = RemotePolicy(attempt_timeout_s=4.0, connections_max=3, attempts_max=2)


@pytest.fixture
def context(tmp_path: Path):
    made = Context(
        state=tmp_path,
        cache=tmp_path / "cache",
        credentials=str(tmp_path / "secrets"),
        policy=RemotePolicy(**json.loads(json.dumps(asdict(POLICY)))),  # as the worker is told
    )
    yield made
    made.close()


def test_patience_is_that_of_the_configuration(context: Context) -> None:
    assert context.patience == POLICY
    machinery = context.machinery
    assert (machinery.read_timeout_s, machinery.connect_timeout_s) == (4.0, 4.0)
    assert machinery.connections_max == 3


def test_a_credentials_file_that_was_named_must_be_there(context: Context) -> None:
    with pytest.raises(Denied, match="secrets"):
        context.machinery.credentials.check()


def test_without_any_the_usual_ones(tmp_path: Path) -> None:
    assert Context(state=tmp_path, cache=tmp_path).patience == RemotePolicy()
