"""kill -9 of the daemon while it fetches and evicts; then all is as the source has it."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.projections.mounts import MIB, READER, content, on, readers, truth_of, until, whole_tree

SMALL_CACHE = """
[remotes]
cache_bytes_max = "64 MiB"
cache_free_floor_bytes = 0
"""
MIXED = {f"d{n % 3}/f{n}": content(n, (n * 977_777) % (9 * MIB)) for n in range(24)}


def start_readers(far, truth, count: int) -> list[subprocess.Popen[bytes]]:
    """Processes that read until the mount is gone."""
    return [
        subprocess.Popen(
            [sys.executable, "-c", READER, far.far, truth, str(seed), "1000000"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for seed in range(count)
    ]


def kill_while(far, truth, happened) -> None:
    """kill -9 when this has happened, under readers; then a new daemon."""
    processes = start_readers(far, truth, 3)
    try:
        until(happened, "the readers do not get so far")
        far.daemon.kill()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    far.start()


def compare(far, files, truth) -> None:
    wrong, errors = readers(far.far, truth, seeds=(1, 2), count=15)
    assert not wrong
    assert not errors
    assert whole_tree(far.far) == files
    far.daemon.check_clean(data=True)


@on("s3")
def test_killed_while_fetching(site, projector, tmp_path):
    site.fill(MIXED)
    truth = truth_of(MIXED, tmp_path / "truth")
    far = projector(site, config="")
    rng = random.Random(site.url[:3])
    for _ in range(2):
        before = far.counters()["fetched_bytes"]
        wanted = before + rng.randrange(1, 20) * MIB
        kill_while(far, truth, lambda: far.counters()["fetched_bytes"] >= wanted)  # noqa: B023
        far.daemon.check_clean(data=True)
    compare(far, MIXED, truth)
    far.stop()


@on("sftp")
def test_killed_while_evicting(site, projector, tmp_path):
    """The cache holds less than the tree: the hand goes round while readers fetch."""
    site.fill(MIXED)
    truth = truth_of(MIXED, tmp_path / "truth")
    far = projector(site, config=SMALL_CACHE)
    for round_ in range(2):
        least = 5 + 20 * round_
        kill_while(
            far,
            truth,
            lambda: far.counters()["cache_evicted_blocks"] >= least,  # noqa: B023
        )
        far.daemon.check_clean(data=True)
    assert far.gauges()["cache_bytes"] <= 96 * MIB
    compare(far, MIXED, truth)
    far.stop()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_killed_while_evicting_again_and_again(site, projector, tmp_path, seed):
    rng = random.Random(seed)
    site.fill(MIXED)
    truth = truth_of(MIXED, tmp_path / "truth")
    far = projector(site, config=SMALL_CACHE)
    for _ in range(10):
        least = rng.randrange(1, 80)
        kill_while(
            far,
            truth,
            lambda: far.counters()["cache_evicted_blocks"] >= least,  # noqa: B023
        )
        compare(far, MIXED, truth)
    far.stop()


@on("s3")
def test_what_was_here_and_committed_is_not_fetched_again_after_a_kill(site, projector, tmp_path):
    site.fill(MIXED)
    truth = truth_of(MIXED, tmp_path / "truth")
    far = projector(site, config="")
    kept = [name for name in MIXED if name.startswith("d0/")]
    for name in kept:
        assert (far.far / name).read_bytes() == MIXED[name]
    far.daemon.flush()
    before = far.counters()["fetched_bytes"]
    kill_while(far, truth, lambda: far.counters()["fetched_bytes"] > before)
    assert far.counters()["fetched_bytes"] == 0
    for name in kept:
        assert (far.far / name).read_bytes() == MIXED[name]
    assert far.counters()["fetched_bytes"] == 0, "what was here came again"
    far.daemon.check_clean(data=True)
    far.stop()


@on("sftp")
def test_killed_while_a_tree_is_listed(site, projector):
    """What is shown afterwards is the whole listing, or it is asked for again."""
    files = {f"d{n % 7}/{n:05}": b"" for n in range(2_100)}
    site.fill(files)
    far = projector(site, config="[write]\ncommit_interval_s = 0.05\n")
    for _ in range(3):
        finding = subprocess.Popen(
            ["find", far.far], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: far.counters()["listed_entries"] > 0, "nothing is listed")
        far.daemon.kill()
        finding.kill()
        finding.wait()
        far.start()
        far.daemon.check_clean()
        far.call("refresh", path="/far", recursive=True)
    assert whole_tree(far.far) == files
    far.stop()
