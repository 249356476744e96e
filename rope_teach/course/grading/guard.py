"""Walls around a student's code: limits, a folder that it may write to, no network.

Linux holds them in its kernel, for this process and for all that it starts: resource
limits, Landlock (writes, signals) and, through ``unshare``, namespaces of its own for
processes and network. Every system has the second line, an audit hook in Python, which
stops what Python does but not what C code or another program does.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["build", "held", "namespaces"]

MOST_STARTS = 50  # programs and forks in one run; lesson 19 needs a few
TOO_MANY = 75  # the exit status of a process that wants more
MOST_THREADS = 400  # beside those that this user runs already
FILE_SIZE = 1 << 30  # bytes
OPEN_ANYWHERE = ("/dev/null", "/dev/shm", "/dev/tty")

# Python's audit events, and which of their arguments are paths that change.
CHANGES = dict.fromkeys(
    ("os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.utime",
     "os.truncate", "shutil.rmtree"), slice(1),
) | {"os.rename": slice(2), "os.link": slice(2), "os.symlink": slice(1, 2)}  # fmt: skip
STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
          "os.system", "subprocess.Popen"}  # fmt: skip


@cache
def namespaces() -> tuple[str, ...]:
    """Return the command in front of Python that hides processes and network, or ()."""
    command = (
        "unshare", "--user", "--map-root-user", "--net", "--pid", "--mount-proc",
        "--fork", "--kill-child",
    )  # fmt: skip
    if not shutil.which(command[0]):
        return ()
    works = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if works.returncode == 0 else ()


def build(folder: Path, seconds: int, memory: int) -> None:
    """Wall this process in, for good; call it before anything starts a thread.

    Parameters
    ----------
    folder
        The one place where files may be written, changed or removed.
    seconds
        CPU time for this process and for each that it starts.
    memory
        Address space for each of them, in bytes.
    """
    limit_resources(seconds, memory)
    if sys.platform == "linux":
        open_loopback()
        own_disks(folder)
        landlock([folder, *map(Path, OPEN_ANYWHERE)])
    sys.addaudithook(watch(folder))


def limit_resources(seconds: int, memory: int) -> None:
    """Set what the system refuses to exceed; Windows has nothing of the kind."""
    try:
        import resource
    except ImportError:
        return
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: FILE_SIZE,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # it counts this user's threads, here and elsewhere
        limits[resource.RLIMIT_NPROC] = threads_of_this_user() + MOST_THREADS
    for kind, limit in limits.items():
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            pass  # a lower limit is set already, or macOS does not know this one


def threads_of_this_user() -> int:
    """Count the threads that the system charges to this user."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == os.getuid():
                count += len(os.listdir(process / "task"))
        except OSError:
            pass  # it has ended
    return count


def open_loopback() -> None:
    """Switch on 127.0.0.1 in a network namespace of one's own."""
    import fcntl
    import socket

    up_and_running = struct.pack("16sH22x", b"lo", 0x1 | 0x40)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        try:
            fcntl.ioctl(anything, 0x8914, up_and_running)  # SIOCSIFFLAGS
        except OSError:
            pass  # the machine's own network: it is on, and not ours to change


def own_disks(folder: Path) -> None:
    """Put ``folder`` and /dev/shm on disks of their own, which fill up and then go."""
    if os.getpid() != 1:  # not in namespaces of one's own: the disks are the machine's
        return
    mount, options = ctypes.CDLL(None).mount, f"size={FILE_SIZE}".encode()
    mount(b"tmpfs", b"/dev/shm", b"tmpfs", 6, options)
    there = os.open(folder, os.O_PATH)
    taken = sum(path.lstat().st_size + 4096 for path in folder.rglob("*"))
    options = f"size={FILE_SIZE + taken},nr_inodes=100k".encode()
    if mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 6, options) == 0:
        with suppress(shutil.Error):  # what cannot be read stays behind
            shutil.copytree(f"/proc/self/fd/{there}", folder, True, dirs_exist_ok=True)
    os.close(there)


def filled(folder: Path) -> bool:
    """Whether what a notebook has written leaves too little for the cells after it."""
    disks = (folder, Path("/dev/shm")) if os.getpid() == 1 else ()
    return any(shutil.disk_usage(disk).free < FILE_SIZE // 2 for disk in disks)


def landlock_version() -> int:
    """Return what this Linux knows of Landlock: 0 for nothing."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(444, None, 0, 1)))


def held() -> str:
    """Say in one sentence which walls this machine's kernel holds."""
    walls = ["files"] if landlock_version() else []
    walls += ["processes", "network"] if namespaces() else []
    if len(walls) == 3:
        return "Linux kept each notebook from your files, processes and network."
    return (
        f"The system itself kept notebooks from {' and '.join(walls) or 'nothing'}, "
        "Python from the rest: grade strangers' code in a container."
    )


def landlock(folders: list[Path]) -> bool:
    """Let this process write only below ``folders``; return whether Linux holds it.

    From Linux 5.13. From 6.12 it cannot signal any process outside the wall, either.
    The numbers are those of ``linux/landlock.h`` and the same on every machine.
    """
    version = landlock_version()
    if not version:
        return False
    call = ctypes.CDLL(None).syscall
    writes = 1 << 1 | sum(1 << bit for bit in range(4, 13))  # write, remove, make
    writes |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    of_files = writes & (1 << 1 | 1 << 14)
    scope = 0b11 if version >= 6 else 0  # abstract sockets, signals
    attributes = struct.pack("QQQ", writes, 0, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = call(444, attributes, ctypes.c_size_t(size), 0)
    for folder in folders:
        if folder.exists():
            place = os.open(folder, os.O_PATH)
            rights = writes if folder.is_dir() else of_files
            call(445, rules, 1, struct.pack("=Qi", rights, place), 0)
            os.close(place)
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no new privileges: Landlock asks for it
    held = call(446, rules, 0) == 0
    os.close(rules)
    return bool(held)


def watch(folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook; Python asks it before it opens, removes, kills, starts."""
    inside = [os.path.realpath(place) for place in (folder, *OPEN_ANYWHERE)]
    teacher = os.getppid()
    started = mmap.mmap(-1, 8)  # shared with every process that is forked from here
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def refuse_outside(*paths: object) -> None:
        for path in paths:
            if isinstance(path, int):
                continue  # a file that is open already
            real = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
            if not any(f"{real}{os.sep}".startswith(f"{x}{os.sep}") for x in inside):
                raise PermissionError(f"while grading, nothing may change {real}")

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = given
            if set(mode or "") & set("wax+") or (flags or 0) & writing:
                refuse_outside(path)
        elif event in CHANGES:
            # A path from a folder that is open already is known to Linux alone.
            if event == "os.truncate" or given[-1] in (-1, None):
                refuse_outside(*given[CHANGES[event]])
        elif event in STARTS:
            (count,) = struct.unpack("q", started[:8])
            if count >= MOST_STARTS:
                os._exit(TOO_MANY)  # every process that goes on with it comes to this
            started[:8] = struct.pack("q", count + 1)
        elif event in ("os.kill", "os.killpg") and given[0] in (teacher, -1, -teacher):
            raise PermissionError("while grading, no process outside may be ended")

    return hook
