"""Our mirror and `rsync -aHAX --delete` make the same of the same trees, attribute by attribute."""

import os
import random
import shutil
import subprocess

import pytest

from syncer.context import Context
from syncer.engine import run_job
from syncer.events import Silence
from syncer.options import JobSpec, Mode, Options, Verb
from tests.syncer.differential.trees import change_tree, holes_kept, make_tree, seen

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")

ARCHIVE = Options(
    mode=Mode.MIRROR, force=True, owners=True, numeric_ids=True, xattrs=True, durable=False
)


async def mirror(tmp_path, source, target, options=ARCHIVE):
    context = Context(state=tmp_path / "state", cache=tmp_path / "cache", audited=False)
    spec = JobSpec(Verb.SYNC, os.fsdecode(source), os.fsdecode(target), options)
    report = await run_job(spec, context, Silence())
    context.close()
    return report


def rsync(source, target):
    command = ["rsync", "-aHAX", "--numeric-ids", "--delete", source + b"/", target + b"/"]
    subprocess.run(command, check=True, capture_output=True)


def differences(ours, theirs):
    return [
        (name, key, ours.get(name, {}).get(key), theirs.get(name, {}).get(key))
        for name in sorted(ours.keys() | theirs.keys())
        for key in sorted(ours.get(name, {}).keys() | theirs.get(name, {}).keys())
        if ours.get(name, {}).get(key) != theirs.get(name, {}).get(key)
    ]


async def one_history(tmp_path, seed, rounds=3):
    chance = random.Random(seed)
    source, ours, theirs = (os.fsencode(tmp_path / name) for name in ("source", "ours", "theirs"))
    os.mkdir(source)
    make_tree(source, chance)
    os.mkdir(theirs)
    for _ in range(rounds):
        report = await mirror(tmp_path, source, ours)
        assert report.outcome == "done", report.failures
        rsync(source, theirs)
        assert differences(seen(ours), seen(theirs)) == []
        assert differences(seen(ours), seen(source)) == []
        assert [path for path, kept in holes_kept(source, ours) if not kept] == []
        # What is alike needs nothing.
        again = await mirror(tmp_path, source, ours)
        done = (again.files_copied, again.links_made, again.deleted, again.metadata_set)
        assert (done, again.outcome) == ((0, 0, 0, 0), "done")
        change_tree(source, chance)


@pytest.mark.parametrize("seed", range(8))
async def test_mirror_is_like_rsync(tmp_path, seed):
    await one_history(tmp_path, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 400))
async def test_mirror_is_like_rsync_for_long(tmp_path, seed):
    await one_history(tmp_path, seed, rounds=6)
