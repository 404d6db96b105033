"""A place means the same to `orbit` and to `orbit-ctl`."""

import json

import pytest
from click.testing import CliRunner

from cli import orbit_session
from cli.orbit import main as orbit
from cli.places import snapshot


@pytest.mark.parametrize(
    ("words", "source", "destination"),
    [
        (("backup", "/a", "repo"), "/a", "repo:{here}/repo"),
        (("backup", "/a", "repo:repo"), "/a", "repo:{here}/repo"),
        (("backup", "/a", "/b/repo/"), "/a", "repo:/b/repo"),
        (("backup", "/a", "--dest", "sftp://host/repo"), "/a", "repo:sftp://host/repo"),
        (("copy", "a//b/./c/", "file:///d"), "{here}/a/b/c/", "/d"),
        (("verify", "repo:r#latest:t/etc", "./x:y"), "repo:{here}/r#latest:t/etc", "{here}/x:y"),
    ],
)
def test_both_programs_make_the_same_job_of_it(
    words, source, destination, jobs, orbit_ctl, socket_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ran = orbit_ctl("--socket", socket_path, *words, "--detach", "--json")
    assert ran.returncode == 0, ran.stderr
    theirs = jobs.get(json.loads(ran.stdout)["job"]).spec
    made = []
    monkeypatch.setattr(
        orbit_session.Session,
        "run",
        lambda self, verb, given: made.append(
            self.spec_of(verb, {key: value for key, value in given.items() if key not in SHOWN})
        ),
    )
    assert CliRunner().invoke(orbit, [*words], catch_exceptions=False).exit_code == 0
    assert made == [theirs]
    assert theirs.source == source.format(here=tmp_path)
    assert theirs.destination == destination.format(here=tmp_path)


SHOWN = {"dry_run", "verbose", "quiet", "as_json", "explain"}


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("snapshot:x", "a local folder or a URL"),
        ("anna@host:repo", "sftp://anna@host/repo"),
        ("s3:bucket", "s3://bucket"),
        ("ftp://host/repo", "unknown scheme"),
    ],
)
def test_what_is_no_repository_is_refused_with_what_to_write(
    place, says, jobs, orbit_ctl, socket_path, tmp_path
):
    ran = orbit_ctl("--socket", socket_path, "backup", tmp_path, place)
    assert (ran.returncode, jobs.list()) == (2, [])
    assert says in ran.stderr
    alone = CliRunner().invoke(orbit, ["backup", str(tmp_path), place])
    assert alone.exit_code == 2
    assert says in alone.output


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("name", "R#name"),
        ("name:etc/hosts", "R#name/etc/hosts"),
        ("name:/a:b", "R#name/a:b"),
        ("name/a:b", "R#name/a:b"),
        ("latest", "R#latest"),
        ("latest:etc", "R#latest/etc"),
        ("latest:/a:b", "R#latest/a:b"),
        ("latest:etc/a:b", "R#latest/etc/a:b"),
        ("latest:nightly:", "R#latest:nightly"),
        ("latest:nightly:etc", "R#latest:nightly/etc"),
        ("repo:S#name", "repo:S#name"),
        ("snapshot:name/a", "snapshot:name/a"),
        ("/a:b", "/a:b"),
        ("./a", "./a"),
        ("s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_names_of_snapshots_and_paths_in_them(written, means):
    assert snapshot(written, "R#") == means
