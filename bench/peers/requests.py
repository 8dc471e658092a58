"""Requests as the bytes that go over the wire: the same few headers for every peer."""

import json
import socket
from collections.abc import Mapping


def get(port: int, path: str) -> bytes:
    """A request that opens a stream."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()


def post(port: int, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A publish, on a connection that stays open."""
    lines = {
        "Host": f"127.0.0.1:{port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def accepted(port: int, request: bytes) -> bool:
    """Whether the answer to this request, on a connection of its own, is a 2xx."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request)
        return connection.recv(64).startswith(b"HTTP/1.1 2")
