"""The launcher, mount(8) and fstab with the real daemon."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ghostd.mountpoint import mounted_at

SYSTEMD = Path(__file__).parents[2] / "systemd"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and shutil.which("fusermount3") is None, reason="cannot mount here"
)


@pytest.fixture
def places(tmp_path):
    names = {name: tmp_path / name for name in ("mnt", "state", "s.sock")}
    yield names
    stop(names)
    # After a failure: nothing may stay mounted. ismount() would ask the mount itself.
    left = mounted_at(names["mnt"])
    if left is not None:
        subprocess.run(["fusermount3", "-uz", names["mnt"]], check=True)
    assert left is None


def orbit_ctl(places, *arguments):
    command = [sys.executable, "-m", "cli.orbit_ctl", "--socket", places["s.sock"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stop(places):
    assert orbit_ctl(places, "stop").returncode in (0, 3)


def launch(places):
    command = [sys.executable, "-m", "ghostd.launch", "--mount", places["mnt"]]
    command += ["--state", places["state"], "--socket", places["s.sock"]]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_returns_when_mounted_and_again_at_once(places):
    ran = launch(places)
    assert ran.returncode == 0, ran.stderr
    assert f"mounted at {places['mnt']}" in ran.stdout
    (places["mnt"] / "file").write_text("hello")
    again = launch(places)
    assert again.returncode == 0
    assert "mounted already" in again.stdout
    status = orbit_ctl(places, "status")
    assert status.stdout.startswith("ready")


def test_the_daemons_own_words_say_why_not(places):
    places["mnt"].mkdir()
    (places["mnt"] / "precious").write_text("")
    ran = launch(places)
    assert ran.returncode == 1
    assert "is not empty" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_dead_mount_is_replaced(places):
    assert launch(places).returncode == 0
    pid = json.loads(orbit_ctl(places, "--json", "status").stdout)["pid"]
    process = os.pidfd_open(pid)
    places["mnt"].stat()
    os.kill(pid, signal.SIGKILL)
    assert select.select([process], [], [], 20)[0]
    os.close(process)
    # The kernel still has the root's attributes, so a stat would tell of no death.
    places["mnt"].stat()
    ran = launch(places)
    assert ran.returncode == 0, ran.stderr
    assert list(places["mnt"].iterdir()) == []


# In namespaces of their own: whatever happens inside, no mount and no process is left.
APART = ["unshare", "-m", "-p", "-f", "--mount-proc", "--kill-child", "--"]

# Here the helper lies in /sbin as `make install` puts it.
INSIDE = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/mnt"
mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$1/upper,workdir=$1/work" /usr/sbin
sed "s#/usr/local/lib/orbit/bin/python#$2#" "$3/mount.orbit" >/usr/sbin/mount.fuse.orbit
chmod 755 /usr/sbin/mount.fuse.orbit
ctl() { "$2" -m cli.orbit_ctl --socket "$1/s.sock" "$3"; }

mount -t fuse.orbit "$1/state" "$1/mnt" -o "socket=$1/s.sock"
echo data >"$1/mnt/file"
ctl "$1" "$2" stop

echo "$1/state $1/mnt fuse.orbit defaults,_netdev,nofail,ro,nosuid,socket=$1/s.sock 0 0" >"$1/fstab"
mount --fstab "$1/fstab" "$1/mnt"
cat "$1/mnt/file"
findmnt -n -o VFS-OPTIONS "$1/mnt"
if touch "$1/mnt/other" 2>/dev/null; then echo "writable"; fi
umount "$1/mnt"

if mount -t fuse.orbit "$1/state" "$1/mnt" -o nonsense; then echo "accepted"; fi
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_mount_and_fstab_find_the_helper(tmp_path):
    command = [
        *APART,
        "/bin/sh",
        "-c",
        INSIDE,
        "sh",
        tmp_path,
        sys.executable,
        SYSTEMD,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[:2] == ["stopped", "data"]
    assert {"ro", "nosuid"} <= set(lines[2].split(","))
    assert len(lines) == 3, ran.stdout
    assert "unknown option nonsense" in ran.stderr


# As an ordinary user, in a mount namespace of its own: with the /dev/fuse that udev makes for
# everybody (some machines have a private one), and the one capability that lets this user read the
# checkout wherever it lies.
AS_USER = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o dev,mode=755 tmpfs "$1"
mkdir "$1/home"
chown 65534:65534 "$1/home"
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
reading=+dac_read_search
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps "$reading" \
    --ambient-caps "$reading" env -i HOME="$1/home" PATH=/usr/bin:/bin /bin/sh -euc '
run() { "$1" -m ghostd.launch --mount ~/mnt --state ~/state >/dev/null; }
run "$1"
"$1" -m cli.orbit_ctl status | head -n 1
echo mine >~/mnt/file
stat -c "%u %g" ~/mnt ~/mnt/file
kill -9 $("$1" -m cli.orbit_ctl --json status | sed "s/.*\"pid\": \([0-9]*\).*/\1/")
while "$1" -m cli.orbit_ctl status >/dev/null 2>&1; do :; done
ls -d ~/mnt >/dev/null 2>&1 || true
run "$1"
"$1" -m cli.orbit_ctl stop
! stat -f -c %T ~/mnt | grep fuse
' sh "$2"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes the user from root")
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="no fusermount3")
def test_an_ordinary_user_mounts_writes_and_recovers(tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o011 != 0o011:
            folder.chmod(0o711)  # the user's home lies below
    command = [*APART, "/bin/sh", "-c", AS_USER, "sh", tmp_path, sys.executable]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines() == [
        f"ready     {tmp_path}/home/mnt, stored in {tmp_path}/home/state",
        "65534 65534",
        "65534 65534",
        "stopped",
    ]
