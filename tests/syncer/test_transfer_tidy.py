"""What a killed writer left does not stay beside the files of the job that comes after it."""

import os
import subprocess
import sys

from syncer.context import Context
from syncer.engine import run_job
from syncer.events import Silence
from syncer.local_parts import kept_name
from syncer.local_tree import LocalTree
from syncer.options import JobSpec, Options, Verb
from syncer.steps import Step, StepKind, TakenStep
from syncer.transfer_tidy import Tidy

DEAD = "from syncer.local_parts import PartNames; print(PartNames().new().decode())"


def parts_in(tree):
    """A part of a process that has ended, one that a job may go on with, and one of our own."""
    dead = subprocess.run(
        [sys.executable, "-c", DEAD], check=True, capture_output=True, text=True
    ).stdout.strip()
    return dead.encode(), kept_name(), tree.parts.new()


async def test_a_job_that_goes_on_looks_where_it_writes(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "e").mkdir()
    tree = await LocalTree.open(os.fsencode(tmp_path))
    parts = parts_in(tree)
    for folder in ("d", "e"):
        for name in parts:
            (tmp_path / folder / os.fsdecode(name)).touch()
    taken = [TakenStep(1, Step(StepKind.COPY, b"d/file", size=1), 0, None)]
    await Tidy(tree, resumed=False).before(taken)
    assert {os.fsencode(each.name) for each in (tmp_path / "d").iterdir()} == set(parts)
    await Tidy(tree, resumed=True).before(taken)
    assert {os.fsencode(each.name) for each in (tmp_path / "d").iterdir()} == set(parts[1:])
    assert {os.fsencode(each.name) for each in (tmp_path / "e").iterdir()} == set(parts)
    await tree.close()


async def test_another_job_removes_what_it_comes_by(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source / "d", target / "d"):
        folder.mkdir(parents=True)
    (source / "d" / "file").write_text("content")
    tree = await LocalTree.open(os.fsencode(target))
    dead, kept, _ = parts_in(tree)
    await tree.close()
    for name in (dead, kept):
        (target / "d" / os.fsdecode(name)).touch()
    context = Context(state=tmp_path / "state", cache=tmp_path / "cache")
    context.state.mkdir()
    await run_job(JobSpec(Verb.SYNC, str(source), str(target), Options()), context, Silence())
    context.close()
    assert {each.name for each in (target / "d").iterdir()} == {"file", os.fsdecode(kept)}
