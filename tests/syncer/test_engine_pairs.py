"""Contents go from every kind of tree to every other, with real servers, and come back the same."""

import importlib
import itertools
import os
import random

import pytest

from syncer.context import Context
from syncer.ends import Ends
from syncer.engine import Run
from syncer.events import Report, Silence
from syncer.guardian import End, Surroundings
from syncer.local_tree import LocalTree
from syncer.options import JobSpec, Mode, Options, Verb
from syncer.transfer_job import _TreesJob
from syncer.transfer_meter import Meter

KINDS = ("local", "memory", "sftp", "s3", "smb", "azure", "gcs")
# Each kind once as source and once as destination; all others in the soak.
USUAL = list(itertools.pairwise([*KINDS, KINDS[0]]))
PAIRS = [
    pair if pair in USUAL else pytest.param(*pair, marks=pytest.mark.soak)
    for pair in itertools.product(KINDS, KINDS)
]


def kind(name):
    return importlib.import_module(f"tests.syncer.tree_kind_{name}").KIND


async def mirror(tmp_path, source, target, **options):
    spec = JobSpec(
        Verb.SYNC, "a", "b", Options(mode=Mode.MIRROR, force=True, durable=False, **options)
    )
    context = Context(state=tmp_path / "state", audited=False)
    run = Run(spec, context, Silence(), Report("sync", "", ""), Meter(), False, None, None)
    job = _TreesJob(run, Ends(source, target), End(target.features), Surroundings.look())
    await job.carry_out()
    return run.report


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_contents_arrive_and_come_back(tmp_path, one, other):
    chance = random.Random(1)
    start, back = tmp_path / "start", tmp_path / "back"
    (start / "d" / "e").mkdir(parents=True)
    for name in ("a", "d/b", "d/e/c", "d/ünï", "empty"):
        size = 0 if name == "empty" else chance.choice([10, 5_000, 3 << 20])
        (start / name).write_bytes(chance.randbytes(size))
    first, last = LocalTree(os.fsencode(start)), LocalTree(os.fsencode(back))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    async with (
        kind(one).empty(tmp_path / "one") as source,
        kind(other).empty(tmp_path / "other") as target,
    ):
        for _ in range(2):
            for pair in ((first, source), (source, target), (target, last)):
                report = await mirror(tmp_path, *pair, checksum=True, verify=True)
                assert report.outcome == "done", report.failures
                assert report.failed == 0, report.failures
            assert files(back) == files(start)
            (start / "a").unlink(missing_ok=True)
            (start / "d" / "b").write_bytes(b"changed")
            (start / "new").write_bytes(b"new")
