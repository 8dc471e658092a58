"""The server: one replica under uvicorn, its sockets, its HTTP protocol, and the fast path before the application.

`run` serves another application in which allim is mounted. It is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from allim.requirements import check_version

if TYPE_CHECKING:
    from allim.server.embedded import run

__all__ = ["run"]


def __getattr__(name: str) -> object:
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version("uvicorn")  # before its import
    from allim.server.embedded import run

    return run
