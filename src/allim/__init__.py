"""allim: horizontally scaled server-sent event notifications.

`of`, `mount` and `lifespan` are loaded when they are first used: `import allim` alone loads nothing else.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allim.embedding import lifespan, mount, of

__version__ = "0.1.0"

__all__ = ["__version__", "lifespan", "mount", "of"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from allim import embedding

    return getattr(embedding, name)
