"""A real HTTP server that answers as a test tells it, byte by byte if need be, and remembers what it was asked."""

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

PROBLEM = "application/problem+json"


class Asked(NamedTuple):
    """A request. `connection` counts from 1."""

    connection: int
    line: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def token(self) -> str:
        return self.headers["authorization"].removeprefix("Bearer ")


@dataclass
class Connection:
    sock: socket.socket
    ended: threading.Event

    def write(self, content: bytes) -> None:
        self.sock.sendall(content)


Answer = Callable[[Asked, Connection], object]


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in {"content_length": str(len(body)), **headers}.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    content = f"HTTP/1.1 {status} {status}\r\n{head}\r\n".encode() + body
    return lambda asked, connection: connection.write(content)


def in_json(status: int, body: object, **headers: str) -> Answer:
    return answer(status, json.dumps(body).encode(), **{"content_type": "application/json", **headers})


ACCEPTED = in_json(202, {"id": "5-0", "durability": "memory"})


def problem(status: int, code: str = "c", detail: str = "no", **headers: str) -> Answer:
    """As allim and its nginx answer."""
    body = {"type": f"urn:allim:problem:{code}", "status": status, "detail": detail, "code": code}
    return in_json(status, body, content_type=PROBLEM, **headers)


def page(status: int, **headers: str) -> Answer:
    """As a proxy answers by itself."""
    return answer(status, b"<html>", content_type="text/html", **headers)


def trickle(content: bytes, every_s: float = 0.02) -> Answer:
    """Write a byte now and then."""

    def write(asked: Asked, connection: Connection) -> None:
        for index in range(len(content)):
            if connection.ended.wait(every_s):
                return
            connection.write(content[index : index + 1])

    return write


def silence(asked: Asked, connection: Connection) -> None:
    """Answer nothing until the server ends."""
    connection.ended.wait()


def hang_up(asked: Asked, connection: Connection) -> None:
    """Close the connection without an answer."""
    connection.sock.shutdown(socket.SHUT_RDWR)


@dataclass
class Server:
    """Gives each request the next answer, and the last one again and again."""

    answers: list[Answer]
    listener: socket.socket
    tls: ssl.SSLContext | None = None
    asked: list[Asked] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    socks: list[socket.socket] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://127.0.0.1:{self.listener.getsockname()[1]}"

    @property
    def keys(self) -> set[str]:
        return {asked.headers["idempotency-key"] for asked in self.asked}

    def accept(self) -> None:
        threads = []
        with suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.socks.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock, len(self.socks)))
                thread.start()
                threads.append(thread)
        for thread in threads:
            thread.join()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with ExitStack() as stack:
            stack.enter_context(suppress(OSError))
            stack.enter_context(sock)
            if self.tls is not None:
                sock = stack.enter_context(self.tls.wrap_socket(sock, server_side=True))
            reader = stack.enter_context(sock.makefile("rb"))
            while not self.ended.is_set() and (asked := _request(reader, number)) is not None:
                with self.lock:
                    self.asked.append(asked)
                    give = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                give(asked, Connection(sock, self.ended))

    def stop(self) -> None:
        self.ended.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def scripted(*answers: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(list(answers), socket.create_server(("127.0.0.1", 0)), tls)
    thread = threading.Thread(target=server.accept)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


@contextmanager
def full_backlog() -> Iterator[str]:
    """The URL of a server that accepts nobody: its queue is full, so the kernel drops what wants to connect."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        try:
            while True:
                sock = socket.socket()
                waiting.append(sock)
                sock.settimeout(0.3)
                try:
                    sock.connect(listener.getsockname())
                except TimeoutError:
                    break
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for sock in waiting:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()


def _request(reader: BinaryIO, connection: int) -> Asked | None:
    line = reader.readline().decode("latin-1").strip()
    if not line:
        return None
    headers = {}
    while field_line := reader.readline().decode("latin-1").strip():
        name, _, value = field_line.partition(": ")
        headers[name.lower()] = value
    return Asked(connection, line, headers, reader.read(int(headers.get("content-length", 0))))
