"""allim: horizontally scaled server-sent event notifications.

`of`, `mount`, `lifespan` and `user_topic` are loaded at their first use: `import allim` alone loads nothing else.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allim.embedding import lifespan, mount, of
    from allim.identity import user_topic

__version__ = "0.1.0"

__all__ = ["__version__", "lifespan", "mount", "of", "user_topic"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from allim import embedding, identity

    return identity.user_topic if name == "user_topic" else getattr(embedding, name)
