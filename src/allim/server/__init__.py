"""The server: one replica under uvicorn, its sockets, its HTTP protocol, and the fast path before the application.

`run` serves another application in which allim is mounted. It is loaded when it is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allim.server.embedded import run

__all__ = ["run"]


def __getattr__(name: str) -> object:
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from allim.server.embedded import run

    return run
