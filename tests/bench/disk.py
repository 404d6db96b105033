"""The one disk that all systems share: ext4 on a loop device with direct I/O, or a plain folder.

Direct I/O keeps the image's pages out of the machine's page cache, so that a cold read is cold and
a stored byte has left the loop device. The image is written out once and kept, since the first
write to a new place of a file costs its filesystem more than the later ones.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.bench.processes import StepFailed, run
from tests.mount.harness import is_mounted

IMAGE_BYTES = 16 << 30
_BLOCK = 4 << 20


class Disk:
    """Made by `attach`; `detach` leaves only the image file."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "disk"
        self._image = folder / "disk.img"
        self._loop: str | None = None
        self._ours = False  # what is mounted there: another run's is none of our business
        self.kind = ""
        self.can_drop_caches = os.geteuid() == 0

    def attach(self) -> None:
        """Make the filesystem and mount it; without root or loop devices, use the folder."""
        self.root.mkdir(parents=True, exist_ok=True)
        if is_mounted(self.root):
            raise StepFailed(f"{self.root} is still mounted: another run, or a killed one")
        self._ours = True
        try:
            self._write_image()
            losetup = run("losetup", "--find", "--show", "--direct-io=on", self._image, limit_s=60)
            self._loop = losetup.output.strip()
            # Everything is initialised now, not by the kernel while something is measured.
            lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
            run("mkfs.ext4", "-q", "-F", "-E", lazy, self._loop, limit_s=600)
            run("mount", "-o", "nodiscard", self._loop, self.root, limit_s=60)
            self.kind = "ext4 on a loop device with direct I/O"
        except StepFailed as failure:
            self._release()
            self.kind = f"a plain folder (no loop device: {str(failure).splitlines()[0]})"

    def _write_image(self) -> None:
        if os.geteuid() != 0:
            raise StepFailed("loop devices need root")
        if self._image.exists() and self._image.stat().st_size == IMAGE_BYTES:
            return
        space = os.statvfs(self._image.parent)
        if space.f_bavail * space.f_frsize < IMAGE_BYTES + (4 << 30):
            raise StepFailed(f"no room for an image of {IMAGE_BYTES >> 30} GiB")
        part = self._image.with_suffix(".part")
        with part.open("wb", buffering=0) as file:
            for _ in range(IMAGE_BYTES // _BLOCK):
                file.write(bytes(_BLOCK))
            os.fsync(file.fileno())
        part.rename(self._image)

    def drop_caches(self) -> None:
        """Everything clean leaves the kernel's memory: pages, names, inodes."""
        os.sync()
        if self.can_drop_caches:
            Path("/proc/sys/vm/drop_caches").write_text("3")

    def sync(self) -> None:
        """What was written to the disk is on it."""
        run("sync", "-f", self.root, limit_s=600)

    def detach(self) -> None:
        """Unmount; the image stays for the next run."""
        self._release()

    def _release(self) -> None:
        if self._ours and is_mounted(self.root):
            subprocess.run(["umount", str(self.root)], check=False, timeout=300)
            if is_mounted(self.root):
                subprocess.run(["umount", "-l", str(self.root)], check=False, timeout=60)
        if self._loop:
            subprocess.run(["losetup", "-d", self._loop], check=False, timeout=60)
            self._loop = None
