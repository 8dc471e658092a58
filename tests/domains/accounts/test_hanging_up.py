"""Passwords of clients that hang up are not hashed."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Literal

import pytest
from argon2 import PasswordHasher
from harness.schema import migrate
from harness.waiting import until
from starlette.applications import Starlette

from allim.domains import accounts
from allim.storage import open_engine
from tests.access.gates import AMPLE, TOKENS, gate_of
from tests.domains.accounts.test_routes import FirstSnapshots
from tests.domains.fakes import RecordingHub
from tests.server.served import Connect, served

pytestmark = pytest.mark.anyio


class SlowHasher(PasswordHasher):
    """Verifies when it is told to, and counts."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.verified = 0
        self.go_on = threading.Event()

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
        self.verified += 1
        self.go_on.wait(30)
        return super().verify(hash, password)


def sign_in(email: str) -> bytes:
    body = json.dumps({"email": email, "password": "correct horse"}).encode()
    head = b"POST /api/session HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def send(connect: Connect, email: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await connect()
    writer.write(sign_in(email))
    return reader, writer


def waiting() -> int:
    return sum(task.get_name() == "allim client waits for its turn" for task in asyncio.all_tasks())


async def test_a_client_that_hangs_up_while_it_waits_is_not_hashed(tmp_path: Path) -> None:
    hasher = SlowHasher()
    engine = open_engine(f"sqlite:///{tmp_path / 'allim.db'}")
    await migrate(engine)
    hub = RecordingHub()
    service = accounts.Service(engine, TOKENS, accounts.Passwords(hasher), FirstSnapshots(), hub)
    app = Starlette(routes=accounts.routes(service, gate_of(), TOKENS, AMPLE))

    async with served(app) as connect:
        running = [await send(connect, f"running{number}@example.org") for number in range(2)]
        await until(lambda: hasher.verified == 2)
        leaving = [await send(connect, f"leaving{number}@example.org") for number in range(7)]
        await until(lambda: waiting() == 7)
        staying = await send(connect, "staying@example.org")
        await until(lambda: waiting() == 8)

        for _, writer in leaving:
            writer.close()
        await until(lambda: waiting() == 1)
        hasher.go_on.set()
        answers = [await reader.read() for reader, _ in [*running, staying]]

    await engine.dispose()
    assert hasher.verified == 3
    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 500 Internal Server Error"] * 3
