"""File systems of a test's own, which the kernel itself can be made to refuse writes on. Only root can mount one."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Room for a ledger and its WAL; ext4 takes a few megabytes of it.
DISK_BYTES = 24 * 1024 * 1024


class Ext4Disk:
    """An ext4 file system in a file, mounted at ``folder``; the kernel makes it read-only when it finds an error."""

    def __init__(self, image: Path, folder: Path) -> None:
        self._image = image
        self.folder = folder

    def mount(self) -> None:
        """Skips the test where that is not allowed."""
        options = ["-o", "loop,errors=remount-ro"]
        mounted = _run("mount", *options, self._image, self.folder)
        if mounted.returncode != 0:
            pytest.skip(f"this machine does not mount an image: {mounted.stderr}")

    def unmount(self) -> None:
        """Nobody may use it any more."""
        done = _run("umount", self.folder)
        assert done.returncode == 0, done.stderr

    def turn_read_only(self) -> None:
        """As after an error of the medium: for good, whoever has files open for writing."""
        trigger = Path("/sys/fs/ext4", self._device(), "trigger_fs_error")
        if not trigger.exists():
            pytest.skip("this kernel's ext4 cannot be made to find an error")
        trigger.write_text("1")

    def repair(self) -> None:
        """What an operator does then: check the file system, and mount it again."""
        self.unmount()
        checked = _run("e2fsck", "-f", "-y", self._image)
        assert checked.returncode <= 1, checked.stdout  # 1: errors were corrected
        self.mount()

    def _device(self) -> str:
        for line in Path("/proc/mounts").read_text().splitlines():
            device, place = line.split()[:2]
            if place == str(self.folder):
                return Path(device).name
        raise AssertionError(f"{self.folder} is not mounted")


@contextmanager
def ext4_disk(folder: Path) -> Iterator[Ext4Disk]:
    """Mounted below a folder; skips the test where it cannot be."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    missing = [command for command in ("mkfs.ext4", "e2fsck", "chattr") if shutil.which(command) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    image, place = folder / "disk.img", folder / "disk"
    with open(image, "wb") as file:
        file.truncate(DISK_BYTES)
    place.mkdir()
    assert _run("mkfs.ext4", "-q", image).returncode == 0
    disk = Ext4Disk(image, place)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


@contextmanager
def unchangeable(*files: Path) -> Iterator[None]:
    """No process can write these files, not through what it opened before either."""
    for file in files:
        done = _run("chattr", "+i", file)
        assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        for file in files:
            _run("chattr", "-i", file)


def _run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)
