"""The data folder: the SQLite file with accounts, the secret key, a lock, and the socket of a Redis that `allim up`
starts. Only the user that runs allim may read it.
"""

import re
import stat
from pathlib import Path

_OURS = re.compile(r"(\.?secret_key.*|lock|redis\.sock|allim\.db(-wal|-shm|-journal)?)\Z")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make(path: Path) -> None:
    """Make the folder if it is not there, so that only this user may look into it.

    Raises: OSError.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def tighten(path: Path) -> str | None:
    """Close a folder of an earlier version to other users, if everything in it is allim's.

    Returns a warning, in one line, for a folder that stays open: it may be meant for other things too.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & _OTHERS:
            return None
        if any(not _OURS.match(entry.name) for entry in path.iterdir()):
            return f"{path} is open to other users (mode {mode:o}) and holds other files too: chmod 700 {path}"
        path.chmod(mode & ~_OTHERS)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} is open to other users and cannot be closed ({error.strerror}): chmod 700 {path}"
    return None
