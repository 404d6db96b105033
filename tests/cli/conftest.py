"""The daemon's API with a double behind it, for orbit-ctl to call."""

import signal
import subprocess
import sys

import pytest

from ghostd.jobs_facade import JobControl
from syncer.jobs import Jobs
from tests.api.conftest import control, server, socket_path  # noqa: F401  fixtures

# A shell starts what runs in its background without SIGINT, and programs pass that on.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def jobs(control, tmp_path):  # noqa: F811
    """The daemon's jobs; nobody carries them out."""
    jobs = Jobs.open(tmp_path / "jobs.db")
    control.jobs = JobControl(jobs, lambda: None, tmp_path / "audit")
    yield jobs
    jobs.close()


@pytest.fixture
def orbit_ctl(tmp_path):
    """Run orbit-ctl as users do: in a process of its own."""

    def run(*arguments, **env):
        command = [sys.executable, "-m", "cli.orbit_ctl", *map(str, arguments)]
        base = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            command, capture_output=True, text=True, env=base | env, check=False, timeout=60
        )

    return run
