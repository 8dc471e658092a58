"""One process at a time over a data folder: without Redis each process has events, sessions and limits of its own.

The lock is the kernel's, so it ends with its process, however that ends.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from allim.settings import PREFIX, SettingsError

_held: set[int] = set()  # open locks


@contextmanager
def alone(data_dir: Path) -> Iterator[None]:
    """Hold the folder, against other processes and against a second application in this one.

    Raises: SettingsError when it is held, or cannot be locked.
    """
    lock = _lock(data_dir / "lock")
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)
        os.close(lock)


def _lock(path: Path) -> int:
    """An open file with the lock on it and this process' ID in it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
            f"no events: set {PREFIX}REDIS_URL to run several, or another {PREFIX}DATA_DIR for a service of its own"
        ) from None
    except OSError as error:
        os.close(lock)
        raise _unusable(path, error) from error
    return lock


def _unusable(path: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"{PREFIX}DATA_DIR: {path} cannot be locked ({error.strerror}): without {PREFIX}REDIS_URL the folder must be "
        "writable and on a disk of this machine"
    )


def _forget() -> None:
    """A forked child holds nothing: the lock would outlive this process in it."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)
