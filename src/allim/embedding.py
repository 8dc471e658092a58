"""allim inside another ASGI application: finds it, joins its lifespan, publishes from the same process.

docs/embedding.md shows all of it. Nothing here is imported by `import allim` alone.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NamedTuple

from pydantic_core import PydanticSerializationError, to_jsonable_python
from starlette.applications import Starlette
from starlette.types import ASGIApp

from allim.errors import Invalid
from allim.hub import Draft, Hub

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
"""A lifespan as Starlette and FastAPI take it."""

MAX_DEPTH = 32  # of applications and middleware around allim
_KEY = re.compile(r"[\x21-\x7e]{1,256}\Z", re.ASCII)
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+\Z", re.ASCII)
_REMEDY = "use allim.mount(parent, path, app), or give the parent lifespan=allim.lifespan(app)"


class NotRunning(RuntimeError):
    """allim was used before its lifespan began, or after it ended."""


class Stored(NamedTuple):
    """Shape: an id per event, in the order given; `durability` is `memory`, `replica` or `disk`."""

    ids: tuple[str, ...]
    durability: str


class Embedded:
    """The hub of an application, for code in the same process."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.running = False

    async def publish(self, topic: str, type: str, data: object = None, *, key: str | None = None) -> Stored:  # noqa: A002 - as in the client
        """Publish one event, checked as `POST /api/publish` checks it.

        Shape: `data` may hold dates, UUIDs, Decimals, dataclasses and pydantic models. The same `key` with the same
        event publishes it once, for 24 hours, from any replica.
        Raises: Invalid or TooLarge naming the field; Conflict for a key of another event; Unavailable when the store
        did not confirm; NotRunning.
        """
        return await self.publish_batch([(topic, type, data)], key=key, indexed=False)

    async def publish_batch(
        self, events: Sequence[tuple[str, str, object]], *, key: str | None = None, indexed: bool = True
    ) -> Stored:
        """Publish events given as topic, type and data: all or none, in this order.

        Raises: as `publish`; a field of an event is named with its place, such as `[3].topic`, if `indexed`.
        """
        self.check_running()
        if not events:
            raise Invalid.field("events", "must have at least 1 event")
        if key is not None and not _KEY.match(key):
            raise Invalid.field("key", "must be 1 to 256 visible ASCII characters")
        drafts = [
            Draft(topic, type_, _jsonable(data, f"[{index}].data" if indexed else "data"))
            for index, (topic, type_, data) in enumerate(events)
        ]
        published = await self._hub.publish(drafts, key and f"embedded/{key}", indexed=indexed)
        return Stored(tuple(str(position) for position in published.positions), published.durability)

    async def kick(self, subject: str) -> None:
        """End every session that a user has until now, and all their streams on every replica.

        Raises: Unavailable; NotRunning.
        """
        self.check_running()
        await self._hub.sessions.kick(subject)

    def check_running(self) -> None:
        """Raises: NotRunning."""
        if not self.running:
            raise NotRunning(f"the lifespan of allim does not run: {_REMEDY}")

    @contextmanager
    def marked_running(self) -> Iterator[None]:
        """Called by the application's own lifespan."""
        self.running = True
        try:
            yield
        finally:
            self.running = False


def of(app: ASGIApp) -> Embedded:
    """Return the hub of an application of allim, or of the one that is mounted in an application.

    Raises: ValueError when there is none.
    """
    embedded: Embedded = find(app).state.allim
    return embedded


def find(app: ASGIApp) -> Starlette:
    """Return the application of allim that is this one, or is mounted in it, also behind middleware.

    Raises: ValueError when there is none.
    """
    found = _search(app, MAX_DEPTH)
    if found is None:
        raise ValueError(f"there is no allim in this application: {_REMEDY}")
    return found


def mount(parent: Starlette, path: str, app: Starlette) -> None:
    """Mount an application of allim in another one, whose lifespan then begins with allim's and ends before it.

    Shape: `path` such as `/notify`. `parent` is an application of Starlette or FastAPI.
    Raises: ValueError for a malformed path.
    """
    if not _PATH.match(path):
        raise ValueError(f"path: {path!r} must be like /notify, and not end with /")
    parent.mount(path, app)
    parent.router.lifespan_context = lifespan(app, parent.router.lifespan_context)


def lifespan(app: Starlette, own: Lifespan | None = None) -> Lifespan:
    """Return a lifespan for a parent application: that of allim around the parent's `own`.

    In `own`, allim runs: `allim.of(app).publish(…)` works.
    """

    @asynccontextmanager
    async def joined(parent: Any) -> AsyncIterator[Any]:
        async with app.router.lifespan_context(app):
            if own is None:
                yield
            else:
                async with own(parent) as state:
                    yield state

    return joined


def _search(app: object, depth: int) -> Starlette | None:
    if isinstance(getattr(getattr(app, "state", None), "allim", None), Embedded):
        assert isinstance(app, Starlette)
        return app
    if depth == 0:
        return None
    inner = [route.app for route in getattr(app, "routes", ()) if hasattr(route, "app") and hasattr(route, "routes")]
    if (wrapped := getattr(app, "app", None)) is not None:
        inner.append(wrapped)
    return next(filter(None, map(partial(_search, depth=depth - 1), inner)), None)


def _jsonable(data: object, name: str) -> object:
    try:
        return to_jsonable_python(data)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise Invalid.field(name, f"cannot be written as JSON: {error}") from error
