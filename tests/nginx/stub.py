"""A stand-in for a replica: it answers as the test says and remembers what it was asked."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

Answer = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. Shape: header names in lower case; `connection` counts the stub's connections from 1."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


def plain(status: str = "200 OK", body: bytes = b"ok", **headers: str) -> Answer:
    """The same answer to everything."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""]).encode()

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head + body)

    return answer


async def hang_up(_: Asked, writer: asyncio.StreamWriter) -> None:
    """Read the request, then close without a word, as a replica killed in the middle does."""
    writer.close()


_STREAM_SAYS = b"Content-Type: text/event-stream\r\nX-Accel-Buffering: no\r\nConnection: close\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % _STREAM_SAYS


def chunk(body: bytes) -> bytes:
    """One chunk of a stream's body, as a replica writes it; the one without bytes ends the body."""
    return b"%x\r\n%b\r\n" % (len(body), body)


@dataclass
class Stub:
    """Use as `async with`; `answer` may be changed at any time."""

    answer: Answer = field(default_factory=plain)
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        connection = self.connections
        try:
            while not writer.is_closing():
                asked = await _read(reader, connection)
                self.asked.append(asked)
                await self.answer(asked, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()  # nginx went away
        except asyncio.CancelledError:
            pass  # the test is over; asyncio's own server would log a cancelled handler as an error
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, connection: int) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, target, headers, body, connection)
