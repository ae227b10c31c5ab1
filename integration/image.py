"""A file system of its own in a file, on a loop device: one that can be cut off, filled up, or made read-only.

What is mounted is written down in the case's folder and unmounted with the case. Needs root.
"""

import contextlib
import fcntl
import os
import pathlib
import struct

from lib import check, equal, run, wait_until

# <linux/fs.h> _IOR('X', 125, __u32), and its flag for "drop what is not in the log yet, do not flush the log".
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2


class Image:
    def __init__(self, case, name, kind="ext4", megabytes=300, options=()):
        self.file, self.path = case.dir / f"{name}.img", case.dir / f"{name}-mount"
        self.kind = kind
        self.path.mkdir()
        with open(self.file, "wb") as image:
            image.truncate(megabytes << 20)
        self._done([f"mkfs.{kind}", *options, "-q", self.file])
        code, out, err = run(["losetup", "--show", "--find", self.file])
        equal(code, 0, f"exit code of losetup ({err.strip()})")
        self.device = out.strip()
        case.processes.insert(0, self)  # the last to go
        self.mounted = False
        self.mount()

    def mount(self, *options):
        self._done(["mount", "-t", self.kind, *options, self.device, self.path])
        self.mounted = True

    def unmount(self):
        if self.mounted:
            # Somebody who has just been killed may still be letting go of it.
            wait_until(f"{self.path} is unmounted", 20, lambda: run(["umount", self.path])[0] == 0, 0.05)
            self.mounted = False

    def cut(self):
        """The power goes: what was synced stays, everything else that lies in memory is gone."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(folder)

    def remount(self, option):
        self._done(["mount", "-o", f"remount,{option}", self.path])

    def free_bytes(self):
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def stop(self, _seconds=10):
        """Called when the case ends."""
        self.unmount()
        run(["losetup", "--detach", self.device])

    def _done(self, command):
        code, out, err = run(command, 60)
        check(code == 0, f"{command[0]} failed: {out}{err}")


def fill(folder):
    """Writes a file until nothing is left; gives its path."""
    path = pathlib.Path(folder) / "filler"
    with open(path, "wb", buffering=0) as file:
        for length in (16 << 20, 1 << 20, 1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, length)
    return path
