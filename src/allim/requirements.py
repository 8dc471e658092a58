"""The packages that `pip install allim` leaves out, and the libraries that allim takes in tested versions alone.

uvicorn and redis-py are used beyond their public interfaces: docs/decisions/0002 and 0003. pyproject.toml names the
same extras and versions; a test compares them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from allim.errors import Unusable

EXTRAS = {
    "storage": ("aiosqlite", "alembic", "cronsim", "sqlalchemy"),
    "accounts": ("argon2", "authlib"),
    "postgres": ("asyncpg",),
    "up": ("supervisor",),
}
"""The modules that each extra adds, beside those of the extras that it contains."""

TESTED = {"uvicorn": ("0.54", "0.55"), "redis": ("8.0", "8.2")}
"""The first version that is taken, and the first that is not. `make versions` tests the oldest and the newest."""


def check_version(library: str) -> None:
    """Raises: Unusable for a version of the library that allim is not tested with."""
    first, end = TESTED[library]
    installed = version(library)
    if not _ordered(first) <= _ordered(installed) < _ordered(end):
        wanted = f"{library}>={first},<{end}"
        raise Unusable(
            f"{library} {installed} is installed; allim is tested with {wanted}", f"pip install '{wanted}'"
        )


@contextmanager
def needing(extra: str, purpose: str) -> Iterator[None]:
    """Import the modules of an extra inside. Shape: `purpose` is the subject of the error's sentence.

    Raises: Unusable with the command that installs the extra, if a module of an extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not is_of_extra(error):
            raise
        raise Unusable(f"{purpose} needs {error.name}, which is not installed", advice_for(extra)) from error


def is_of_extra(error: BaseException) -> bool:
    """Return whether the error says that a module of an extra is not installed."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return any(missing in modules for modules in EXTRAS.values())


def advice_for(extra: str) -> str:
    return f"pip install 'allim[{extra}]'"


def _ordered(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
