"""Real small file systems, mounted in a mount namespace of their own: they are gone with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from types import TracebackType

SHUTDOWN = 0x8004587D  # ioctl EXT4_IOC_SHUTDOWN: from here on this file system fails, as if its disk had been pulled
PAGE = 4096


class CannotMount(Exception):
    """This machine or user may not mount such a file system; says why."""


class SmallDisk:
    """An empty file system of a few MiB, inside `with`; `path` is where it is seen from here.

    `kind`: "tmpfs", for which user namespaces are enough, or "ext4" in the file `image`, which needs root and a loop
    device. Raises CannotMount.
    """

    def __init__(self, kind: str, place: Path, *, size: int) -> None:
        self.kind, self._size = kind, size
        self._mount_point, self._image = place / "mounted", place / "image"

    def __enter__(self) -> SmallDisk:
        self._mount_point.mkdir()
        command = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
        try:
            self._holder = subprocess.Popen(
                [*command, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except FileNotFoundError as error:
            raise CannotMount(f"no {error.filename}") from error
        try:
            if self.kind == "ext4":
                with self._image.open("wb") as image:
                    image.truncate(self._size)
                self._do(f"mkfs.ext4 -q -m 0 '{self._image}'")
            self.mount()
        except CannotMount:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._holder.communicate()

    @property
    def path(self) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{self._mount_point}")

    def _do(self, command: str) -> None:
        """Run a shell command inside the namespace. Raises CannotMount with what it printed."""
        assert self._holder.stdin is not None and self._holder.stdout is not None
        try:
            self._holder.stdin.write(f'{command}\necho "ended $?"\n')
            self._holder.stdin.flush()
        except BrokenPipeError:
            pass  # the shell has ended; what it said, read below, says why
        said = []
        for line in self._holder.stdout:
            if line.startswith("ended "):
                if line != "ended 0\n":
                    raise CannotMount(f"{command}: {' '.join(said)}")
                return
            said.append(line.strip())
        raise CannotMount(f"unshare: {' '.join(said)}")

    def mount(self) -> None:
        if self.kind == "tmpfs":
            self._do(f"mount -t tmpfs -o size={self._size} tmpfs '{self._mount_point}'")
        else:
            self._do(f"mount -o loop,errors=remount-ro '{self._image}' '{self._mount_point}'")

    def unmount(self, *, even_if_busy: bool = False) -> None:
        self._do(f"umount {'-l ' if even_if_busy else ''}'{self._mount_point}'")

    def remount_read_only(self) -> None:
        """Also while files are open for writing, as ext4 does itself when it meets an error."""
        self._do(f"mount -o remount,abort '{self._mount_point}'")

    def pull(self) -> None:
        """The disk fails: nothing can be read or written any more, and what was not synced is lost."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, (2).to_bytes(4, "little"))  # 2: without flushing anything
        finally:
            os.close(descriptor)

    def free(self) -> int:
        usage = os.statvfs(self.path)
        return usage.f_bavail * usage.f_frsize

    def fill(self, *, leave: int = 0) -> None:
        """Another process takes all of the room but `leave` bytes, in whole pages; `empty` gives it back."""
        filler = self.path / "filler"
        if leave < self.free():
            subprocess.run(["fallocate", "-l", str((self.free() - leave) // PAGE * PAGE), str(filler)], check=False)
        for size in ("64k", "1k") if not leave else ():  # what fallocate has left
            subprocess.run(
                ["dd", "if=/dev/zero", f"of={filler}.{size}", f"bs={size}"], check=False, capture_output=True
            )

    def empty(self) -> None:
        for filler in self.path.glob("filler*"):
            filler.unlink()
