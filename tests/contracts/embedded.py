"""allim inside another application that adds to every response, under `allim.server.run`: `--host`, `--port`.

Beside allim it has routes that allim does not: a body of any size, a WebSocket, and its own publishing.
"""

import click
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import allim
from allim.app import create_app
from allim.server import run


async def add_header(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    if "refused" in request.query_params:
        return PlainTextResponse("refused by the parent", 403)
    response.headers["x-parent"] = "here"
    response.set_cookie("first", "1")
    response.set_cookie("second", "2")
    return response


async def count(request: Request) -> Response:
    """Return the size of the body."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return PlainTextResponse(str(size))


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(await socket.receive_text())
    await socket.close()


async def publish(request: Request) -> Response:
    stored = await allim.of(request.app).publish("user:42", "orders.shipped", {"orderId": 7}, key="order-7")
    return PlainTextResponse(stored.ids[0])


def create() -> Starlette:
    parent = Starlette(
        routes=[
            Route("/count", count, methods=["POST", "DELETE"]),
            WebSocketRoute("/echo", echo),
            Route("/publish", publish, methods=["POST"]),
        ],
        middleware=[Middleware(GZipMiddleware), Middleware(BaseHTTPMiddleware, dispatch=add_header)],
    )
    allim.mount(parent, "/notify", create_app())
    return parent


@click.command()
@click.option("--host")
@click.option("--port", type=int)
def main(host: str, port: int) -> None:
    run(create(), host=host, port=port)


if __name__ == "__main__":
    main()
