"""A lock on the data folder. Without Redis, processes share no events, sessions or limits, so only one may use it.

The kernel holds the lock, so it is released however the process ends.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from allim import data_folder
from allim.settings import SettingsError
from allim.variables import PREFIX

_held: set[int] = set()  # open locks


@contextmanager
def alone(data_dir: Path) -> Iterator[None]:
    """Hold the lock against other processes, and against a second application in this process.

    Raises: SettingsError if the lock is held, or the folder cannot be locked.
    """
    lock = _lock(data_dir / "lock")
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)
        os.close(lock)


def _lock(path: Path) -> int:
    """Return an open file that is locked and contains this process' ID."""
    try:
        data_folder.make(path.parent)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
        os.close(lock)
        raise SettingsError(
            f"{PREFIX}DATA_DIR: process {holder or 'unknown'} uses {path.parent}, and without Redis processes share "
            "no events",
            f"set {PREFIX}REDIS_URL to run several, or another {PREFIX}DATA_DIR for a service of its own",
        ) from None
    except OSError as error:
        os.close(lock)
        raise _unusable(path, error) from error
    return lock


def _unusable(path: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"{PREFIX}DATA_DIR: {path} cannot be made or locked: {(error.strerror or str(error)).lower()}",
        f"without {PREFIX}REDIS_URL the folder must be writable for this user, and on a disk of this machine",
    )


def _forget() -> None:
    """Close the locks in a forked child: otherwise they would outlive this process there."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)
