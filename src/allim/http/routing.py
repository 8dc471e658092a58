"""One route per path, so that a refused method is told all the methods the path knows."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Handler = Callable[[Request], Awaitable[Response]]


def route(path: str, *, get: Handler | None = None, **others: Handler) -> Route:
    """A route with a handler per method: `route("/x", get=show, post=change)`. GET answers HEAD too."""
    handlers = {method.upper(): handler for method, handler in others.items()}
    if get is not None:
        handlers |= {"GET": get, "HEAD": get}

    async def endpoint(request: Request) -> Response:
        return await handlers[request.method](request)

    return Route(path, endpoint, methods=list(handlers))
