"""Projections of real servers on real mounts, while the network is as bad as one likes."""

from __future__ import annotations

import os

import pytest

from tests.projections.mounts import (
    ANSWER_LIMIT_S,
    IMPATIENT,
    MIB,
    PATIENT,
    content,
    orbit_ctl,
    readers,
    some_files,
    truth_of,
    until,
    whole_tree,
    within,
)
from tests.servers.proxy import Cut, How


def test_the_tree_is_the_same_after_reads_from_several_processes(site, projector, tmp_path):
    files = some_files(40)
    site.fill(files)
    truth = truth_of(files, tmp_path / "truth")
    far = projector(site, config=PATIENT)
    wrong, errors = readers(far.far, truth, seeds=range(4), count=60)
    assert not wrong
    assert not errors
    assert whole_tree(far.far) == files
    far.daemon.check_clean(data=True)
    far.stop()
    far.start()
    before = far.site.proxy.counts
    assert whole_tree(far.far) == files
    moved = far.site.proxy.counts - before
    assert far.counters()["fetched_bytes"] == 0, "what was here came again"
    assert moved.down < 100_000
    far.stop()
    far.daemon.expect_quiet()


FAULTS = {
    "latency": {"delay_s": 0.02},
    "narrow": {"bytes_per_s": 8e6, "delay_s": 0.005},
    "resets": {"cut": Cut(How.RESET, 1_300_000)},
    "truncation": {"cut": Cut(How.CLOSE, 1_300_000)},
    "stalls": {"cut": Cut(How.STALL, 1_300_000, times=3)},
}


PAIRS = [("sftp", "latency"), ("s3", "narrow"), ("sftp", "stalls"), ("s3", "truncation")]
REST = sorted({(kind, fault) for kind in ("sftp", "s3") for fault in FAULTS} - {*PAIRS})


@pytest.mark.parametrize(
    ("site", "fault"),
    [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.soak) for pair in REST)],
    indirect=["site"],
)
def test_what_is_read_over_a_bad_link_is_right_or_an_error(site, projector, tmp_path, fault):
    files = some_files(30, seed=len(fault))
    site.fill(files)
    truth = truth_of(files, tmp_path / "truth")
    far = projector(site, config=IMPATIENT, ttl="500ms")
    assert os.listdir(far.far)
    site.proxy.change(**FAULTS[fault])
    wrong, errors = readers(far.far, truth, seeds=range(3), count=5)
    assert not wrong
    if fault in {"latency", "narrow"}:
        assert not errors
    else:
        assert site.proxy.counts.cuts
    site.proxy.heal()
    until(lambda: not far.daemon.status()["remotes"] or os.listdir(far.far), "no recovery")
    until(lambda: _all_there(far, files), "the tree did not come back")
    far.daemon.check_clean(data=True)
    far.stop()


def _state(far) -> str:
    """What `orbit-ctl projections` says of how the remote is."""
    return far.projection()["state"]


def _all_there(far, files) -> bool:
    """Without an error; what differs is a failure at once."""
    try:
        found = whole_tree(far.far)
    except OSError:
        return False
    if found.keys() != files.keys():
        return False
    assert found == files
    return True


def test_garbage_is_never_shown(site, projector):
    """SFTP signs every packet; of S3, which does not, whole objects have a checksum."""
    files = {f"f{n}": content(n, 200_000 + n) for n in range(12)}
    if site.url.startswith("sftp"):
        files["large"] = content("large", 5 * MIB)
    site.fill(files)
    far = projector(site, config=IMPATIENT)
    assert set(os.listdir(far.far)) == set(files)
    site.proxy.change(cut=Cut(How.GARBLE, 150_000, times=8, length=3))
    refused = 0
    for name, data in files.items():
        try:
            assert (far.far / name).read_bytes() == data
        except OSError:
            refused += 1
    assert site.proxy.counts.cuts
    site.proxy.heal()
    until(lambda: _all_there(far, files), "the tree did not come back")
    far.daemon.check_clean(data=True)
    far.stop()


@pytest.mark.parametrize("status", [503, 429])
def test_a_server_that_asks_for_patience_gets_it(bucket, projector, status):
    files = {f"f{n}": content(n, 50_000) for n in range(10)}
    bucket.fill(files)
    far = projector(bucket, config=PATIENT)
    bucket.proxy.answer(3, status, {"Retry-After": "0"}, b"<Error><Code>SlowDown</Code></Error>")
    assert set(os.listdir(far.far)) == set(files)
    bucket.proxy.answer(3, status, {"Retry-After": "0"}, b"<Error><Code>SlowDown</Code></Error>")
    assert whole_tree(far.far) == files
    assert bucket.proxy.counts.answered == 6
    far.stop()


def test_nothing_hangs_while_the_remote_is_a_black_hole(site, projector, tmp_path):
    files = {f"known/f{n}": content(n, 3 * MIB) for n in range(3)}
    files |= {"unknown/f": b"far away", "known/sub/f": b"deeper"}
    site.fill(files)
    far = projector(site, ttl="100ms")
    known, mount = far.far / "known", far.daemon.mount
    assert sorted(os.listdir(known)) == ["f0", "f1", "f2", "sub"]
    assert (known / "f0").read_bytes() == files["known/f0"]
    (mount / "local").write_bytes(b"here")
    one = f"{site.url.rstrip('/')}/known/sub/f"
    far.call("project", url=one, path="/one", ttl_s=0.1)
    assert (mount / "one").read_bytes() == b"deeper"
    kept = tmp_path / "kept"
    kept.write_bytes(files["known/f0"])
    with site.black_hole():
        until(lambda: os.listdir(known) and _state(far) == "stale", "the old listing is not stale")
        assert within(ANSWER_LIMIT_S, "ls", "-la", known)[0] == 0
        assert within(ANSWER_LIMIT_S, "stat", known / "f1")[0] == 0
        assert within(ANSWER_LIMIT_S, "cmp", known / "f0", kept)[0] == 0
        code, said = within(ANSWER_LIMIT_S, "cat", known / "f1")
        assert code == 1
        assert "timed out" in said
        code, said = within(ANSWER_LIMIT_S, "ls", far.far / "unknown")
        assert code == 2
        assert "timed out" in said
        more = f"echo more >> {mount}/local && sync {mount}/local"
        assert within(ANSWER_LIMIT_S, "sh", "-c", more)[0] == 0
        assert within(ANSWER_LIMIT_S, "ls", "-l", mount)[0] == 0
        assert within(ANSWER_LIMIT_S, "cat", mount / "one") == (0, "deeper")
        code, said = within(ANSWER_LIMIT_S, *orbit_ctl(far, "status"))
        assert code == 0, said
        assert site.url.rstrip("/") in said
        assert "stale" in said
        assert _state(far) == "stale"
        assert far.daemon.client.get("/v1/status", 2.0)["state"] == "ready"
        assert within(ANSWER_LIMIT_S, *orbit_ctl(far, "projections"))[0] == 0
    until(lambda: _all_there(far, files), "the tree did not come back")
    until(lambda: _state(far) == "ok", "the state is not ok again")
    until(
        lambda: (mount / "one").read_bytes() and far.daemon.status()["remotes"] == [],
        "the projected file is not well again",
    )
    assert (mount / "local").read_bytes() == b"heremore\n"
    far.daemon.check_clean(data=True)
    far.stop()


def test_a_daemon_starts_and_serves_what_it_has_while_the_remote_is_a_black_hole(site, projector):
    files = {"dir/here": content("here", 2 * MIB), "dir/there": content("there", MIB)}
    site.fill(files)
    far = projector(site, ttl="100ms")
    assert sorted(os.listdir(far.far / "dir")) == ["here", "there"]
    assert (far.far / "dir/here").read_bytes() == files["dir/here"]
    far.stop()
    with site.black_hole():
        far.start()
        code, said = within(ANSWER_LIMIT_S, "ls", "-l", far.far / "dir")
        assert code == 0, said + far.daemon.news()
        code, said = within(ANSWER_LIMIT_S, "cat", far.far / "dir/here")
        assert code == 0
        assert said.encode(errors="surrogateescape") == files["dir/here"]
        assert within(ANSWER_LIMIT_S, "cat", far.far / "dir/there")[0] == 1
        assert far.daemon.status()["remotes"]
    until(lambda: _all_there(far, files), "the tree did not come back")
    far.stop()


def test_a_server_that_went_away_and_came_back(site, projector):
    files = {f"f{n}": content(n, 400_000) for n in range(4)}
    site.fill(files)
    far = projector(site, ttl="100ms")
    assert sorted(os.listdir(far.far)) == sorted(files)
    assert (far.far / "f0").read_bytes() == files["f0"]
    with site.away():
        until(
            lambda: os.listdir(far.far) and _state(far) == "stale", "the old listing is not stale"
        )
        assert sorted(os.listdir(far.far)) == sorted(files)
        assert (far.far / "f0").read_bytes() == files["f0"]
        for name in ("f1", "f2"):
            with pytest.raises(OSError, match=r"timed out|Input/output"):
                (far.far / name).read_bytes()
    site.put("f4", b"made meanwhile")
    site.delete("f3")
    files["f4"] = b"made meanwhile"
    del files["f3"]
    until(lambda: os.path.exists(far.far / "f4"), "the breaker does not close")
    until(lambda: _all_there(far, files), "the tree did not come back")
    until(lambda: _state(far) == "ok", "the state is not ok again")
    far.stop()


def test_a_server_that_was_started_again(folder, projector):
    """Not only the way to it: the same address, another process, every connection lost."""
    files = {f"f{n}": content(n, 400_000) for n in range(3)}
    folder.fill(files)
    far = projector(folder)
    assert (far.far / "f0").read_bytes() == files["f0"]
    folder.sshd.stop()
    try:
        with pytest.raises(OSError, match=r"timed out|Input/output"):
            (far.far / "f1").read_bytes()
    finally:
        folder.sshd.start()
    until(lambda: _all_there(far, files), "the tree did not come back")
    far.stop()


def test_a_login_that_is_not_good_any_more(folder, projector):
    files = {"here": content("here", 1_000), "there": content("there", 1_000_000), "sub/f": b""}
    folder.fill(files)
    far = projector(folder)
    assert sorted(os.listdir(far.far)) == ["here", "sub", "there"]
    assert (far.far / "here").read_bytes() == files["here"]
    far.daemon.news()
    keys = folder.sshd.state / "authorized_keys"
    good = keys.read_text()
    keys.write_text("")
    try:
        folder.proxy.reset_connections()
        with pytest.raises(PermissionError):
            os.listdir(far.far / "sub")
        with pytest.raises(PermissionError):
            (far.far / "there").read_bytes()
        assert (far.far / "here").read_bytes() == files["here"]
        assert sorted(os.listdir(far.far)) == ["here", "sub", "there"]
        said = far.daemon.news()
        assert folder.url in said
        assert "credentials file" in said  # or a key: the cure
        (problem,) = far.daemon.status()["remotes"]
        assert problem["url"] == folder.url
    finally:
        keys.write_text(good)
    until(lambda: _all_there(far, files), "the tree did not come back")
    far.stop()


def test_keys_that_are_not_good_any_more(bucket, projector):
    files = {"here": content("here", 1_000), "there": content("there", 1_000_000), "sub/f": b""}
    bucket.fill(files)
    far = projector(bucket)
    assert sorted(os.listdir(far.far)) == ["here", "sub", "there"]
    assert (far.far / "here").read_bytes() == files["here"]
    far.stop()
    good = bucket.environment["AWS_ACCESS_KEY_ID"], bucket.environment["AWS_SECRET_ACCESS_KEY"]
    bucket.log_in_as("AKIAGONEAWAY", "not/good+any/more")
    far.start()
    far.daemon.news()
    with pytest.raises(PermissionError):
        os.listdir(far.far / "sub")
    with pytest.raises(PermissionError):
        (far.far / "there").read_bytes()
    assert (far.far / "here").read_bytes() == files["here"]
    said = far.daemon.news()
    assert bucket.url.rstrip("/") in said
    assert "AWS_ACCESS_KEY_ID" in said or "credentials" in said, said
    assert "not/good+any/more" not in said
    far.stop()
    bucket.log_in_as(*good)
    far.start()
    assert whole_tree(far.far) == files
    far.stop()


def _in_place(site, key: str, data: bytes) -> None:
    """Another version; over SFTP in the same inode, so that handles that are open see it."""
    if site.url.startswith("sftp"):
        (site.path / key).write_bytes(data)
        os.utime(site.path / key, (1_700_000_000, 1_700_000_000))
    else:
        site.put(key, data)


def test_an_object_that_changes_while_it_is_open(site, projector):
    old, new = content("old", 12 * MIB), content("new", 12 * MIB)
    site.put("f", old)
    far = projector(site)
    fd = os.open(far.far / "f", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(fd, 4_096, 1_000) == old[1_000:][:4_096]
        _in_place(site, "f", new)
        with pytest.raises(OSError, match="Stale"):
            os.pread(fd, 4_096, 8 * MIB)
        assert os.pread(fd, 100_000, 50_000) == old[50_000:][:100_000]
        with pytest.raises(OSError, match="Stale"):
            os.pread(fd, 4_096, 9 * MIB)
        until(lambda: os.stat(far.far / "f").st_ino != os.fstat(fd).st_ino, "no new version")
        assert (far.far / "f").read_bytes() == new
        assert os.pread(fd, 100_000, 50_000) == old[50_000:][:100_000]
    finally:
        os.close(fd)
    far.daemon.check_clean(data=True)
    far.stop()


def test_an_object_that_is_gone_while_it_is_open(site, projector):
    old = content("old", 12 * MIB)
    site.fill({"f": old, "g": b""})
    far = projector(site)
    fd = os.open(far.far / "f", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(fd, 4_096, 1_000) == old[1_000:][:4_096]
        site.delete("f")
        if site.url.startswith("s3"):
            with pytest.raises(OSError, match="Stale"):
                os.pread(fd, 4_096, 8 * MIB)
            until(lambda: not os.path.exists(far.far / "f"), "the name is still there")
        else:  # the server's handle is open and reads on
            assert os.pread(fd, 4_096, 8 * MIB) == old[8 * MIB :][:4_096]
    finally:
        os.close(fd)
    far.call("refresh", path="/far")
    assert os.listdir(far.far) == ["g"]
    far.daemon.check_clean(data=True)
    far.stop()
