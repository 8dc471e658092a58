"""What is known of a connection when it is made, and how many there may be."""

import asyncio
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from allim.server.connections import Connections
from allim.server.limits import address_of

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [uvloop.new_event_loop, asyncio.new_event_loop]
Addresses = tuple[Any, Any]


async def addresses(listening: socket.socket, client: socket.socket) -> tuple[Addresses, Addresses]:
    """Of client and server, as we find them and as uvicorn does."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[tuple[Addresses, Addresses]] = loop.create_future()

    class Looking(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            ours = (address_of(transport, "peername"), address_of(transport, "sockname"))
            found.set_result((ours, (get_remote_addr(transport), get_local_addr(transport))))
            transport.close()

    make = loop.create_unix_server if listening.family == socket.AF_UNIX else loop.create_server
    server = await make(Looking, sock=listening)
    try:
        await loop.sock_connect(client, listening.getsockname())
        return await found
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize(
    ("family", "where"),
    [
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET6, ("::1", 0)),
        (socket.AF_UNIX, "socket"),
        pytest.param(socket.AF_UNIX, f"\0allim-{uuid.uuid4()}", id="abstract"),  # it has no path
    ],
)
def test_addresses_are_those_that_uvicorn_finds(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    family: socket.AddressFamily,
    where: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        socket.socket(family) as listening,
        socket.socket(family) as client,
        asyncio.Runner(loop_factory=new_loop) as runner,
    ):
        listening.bind(where)
        listening.listen()
        client.setblocking(False)

        ours, uvicorns = runner.run(addresses(listening, client))

    assert ours == uvicorns
    assert (ours[1] is None) == (where[0] == "\0")


def test_the_wider_networks_of_an_address_have_a_limit_of_their_own() -> None:
    connections = Connections(2, lambda host: f"2001:db8:0:{host}::/64", lambda _: None)
    entered = [connections.enter(f"{subnet:x}") for subnet in (1, 1, 1, *range(2, 9))]

    assert entered.count(None) == 2  # the third of one /64, and of eight /64 in one /56 the last
    assert entered[2] is entered[-1] is None
    assert connections.enter("100") is not None  # another /56 of the same /48

    for network in entered:
        if network is not None:
            connections.leave(network)
    assert connections.enter("8") is not None


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (("::ffff:192.0.2.1", 5, 0, 0), ("192.0.2.1", 5)),
        (("::ffff:0:102:304", 5, 0, 0), ("::ffff:0:102:304", 5)),
        (("2001:db8::1", 5, 0, 0), ("2001:db8::1", 5)),
        (("192.0.2.1", 5), ("192.0.2.1", 5)),
    ],
)
def test_an_ipv4_client_of_an_ipv6_socket_has_its_ipv4_address(peer: Any, client: Any) -> None:
    class Transport(asyncio.Transport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return peer

    assert address_of(Transport(), "peername") == client
