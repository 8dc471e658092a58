"""A small application with its own users, which decides on topics over a webhook. It verifies signatures as
docs/identity.md shows it.
"""

import asyncio
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from harness.waiting import until_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

SECRET = "webhook-secret-of-the-shop-0123456789"


class Shop:
    """Grants the topics in `rooms` to their members.

    Shape: `rooms` are members by topic; `answer` replaces the usual answer; while `go_on` is not set there is none.
    `asked` are the questions that came with a good signature.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/authorize"
        self.rooms: dict[str, set[str]] = {}
        self.ttl_s: object = 30
        self.answer: Response | None = None
        self.secret = SECRET
        self.asked: list[dict[str, Any]] = []
        self.calls = 0
        self.go_on = threading.Event()
        self.go_on.set()

    async def authorize(self, request: Request) -> Response:
        self.calls += 1
        body = await request.body()
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)
        if not verified(self.secret, request.headers.get("allim-signature", ""), body):
            return Response(status_code=401)
        question = json.loads(body)
        self.asked.append(question)
        if self.answer is not None:
            return self.answer
        granted = [topic for topic in question["topics"] if question["subject"] in self.rooms.get(topic, ())]
        return JSONResponse({"topics": granted, "ttl_s": self.ttl_s})


def verified(secret: str, header: str, body: bytes) -> bool:
    """Return whether allim signed this body within the last five minutes."""
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    expected = hmac.new(secret.encode(), parts.get("t", "").encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts.get("v1", "")) and abs(time.time() - int(parts["t"])) < 300


def huge() -> Response:
    """An answer of 20 MB."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"topics":["'
        for _ in range(2000):
            yield b"a" * 10_000
            await asyncio.sleep(0)

    return StreamingResponse(chunks(), media_type="application/json")


ODD_ANSWERS: dict[str, Response] = {
    "error": Response(status_code=500),
    "redirect": RedirectResponse("http://127.0.0.1:1/elsewhere", 307),
    "no JSON": Response(b"<html>"),
    "a list": JSONResponse(["room:a"]),
    "no ttl": JSONResponse({"topics": ["room:a"]}),
    "no topics": JSONResponse({"ttl_s": 1}),
    "topics as text": JSONResponse({"topics": "room:a", "ttl_s": 1}),
    "a negative ttl": JSONResponse({"topics": ["room:a"], "ttl_s": -1}),
    "a ttl of text": JSONResponse({"topics": ["room:a"], "ttl_s": "30"}),
    "a ttl of truth": JSONResponse({"topics": ["room:a"], "ttl_s": True}),
    "deep": Response(b"[" * 5000),
    "compressed": Response(b"\x1f\x8b", headers={"content-encoding": "gzip"}),
    "huge": Response(b'{"topics":["' + b"a" * 100_000 + b'"],"ttl_s":1}'),
    "very long": huge(),
}


@contextmanager
def shop() -> Iterator[Shop]:
    """A running one, at a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        double = Shop(listener.getsockname()[1])
        app = Starlette(routes=[Route("/authorize", double.authorize, methods=["POST"])])
        config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            until_sync(lambda: server.started, what="the shop")
            yield double
        finally:
            double.go_on.set()
            server.should_exit = True
            thread.join()
