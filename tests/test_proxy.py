"""The fault proxy does what its names say: a fault test that proves nothing would be worse than none."""

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest
import redis as redis_py
from harness.proxy import FaultProxy, fault_proxy
from harness.servers import Redis, free_port
from harness.waiting import until_sync

SILENT_S = 0.2


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


@pytest.fixture(scope="module")
def echo_port() -> Iterator[int]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield int(server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(echo_port: int) -> Iterator[FaultProxy]:
    with fault_proxy(echo_port) as started:
        yield started


class Client:
    """Speaks to the echo server through the proxy."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.socket = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def echoed(self, data: bytes, timeout_s: float = 5.0) -> bytes:
        self.socket.settimeout(timeout_s)
        self.socket.sendall(data)
        received = b""
        while len(received) < len(data):
            received += self.socket.recv(len(data))
        return received

    def is_silent(self) -> bool:
        try:
            self.echoed(b"anybody?\n", SILENT_S)
        except TimeoutError:
            return True
        return False


def test_bytes_of_any_kind_pass_unchanged(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        for data in (b"*3\r\n$7\r\nmess", b"age\r\n$x\r\n", b"hello", b"\0\xff\n" * 100_000):
            assert client.echoed(data) == data


def test_connections_are_counted_and_a_left_one_is_forgotten(proxy: FaultProxy) -> None:
    with Client(proxy) as one, Client(proxy) as two:
        one.echoed(b"1")
        two.echoed(b"2")
        assert proxy.connections == 2
    until_sync(lambda: proxy.connections == 0, what="both forgotten")


def test_a_half_closed_connection_still_gets_its_answer(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        client.socket.sendall(b"last words")
        client.socket.shutdown(socket.SHUT_WR)

        assert client.socket.makefile("rb").read() == b"last words"


def test_cut_ends_a_connection_in_order_and_takes_new_ones(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        client.echoed(b"x")
        proxy.cut()

        assert client.socket.recv(1) == b""
        assert proxy.connections == 0
    with Client(proxy) as client:
        assert client.echoed(b"again") == b"again"


def test_reset_ends_a_connection_roughly_and_takes_new_ones(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        client.echoed(b"x")
        proxy.reset()

        with pytest.raises(ConnectionResetError):
            client.socket.recv(1)
    with Client(proxy) as client:
        assert client.echoed(b"again") == b"again"


def test_a_black_hole_says_nothing_and_closes_nothing_until_it_is_healed(proxy: FaultProxy) -> None:
    with Client(proxy) as before:
        before.echoed(b"x")
        proxy.black_hole()
        with Client(proxy) as during:
            assert before.is_silent()
            assert during.is_silent()
            assert proxy.connections == 2

            proxy.heal()
            for client in (before, during):
                with pytest.raises(ConnectionResetError):
                    client.socket.recv(1)
    with Client(proxy) as after:
        assert after.echoed(b"again") == b"again"


def test_a_black_hole_for_the_present_ones_lets_new_ones_through(proxy: FaultProxy) -> None:
    with Client(proxy) as before:
        before.echoed(b"x")
        proxy.black_hole(present_only=True)
        with Client(proxy) as during:
            assert during.echoed(b"quick") == b"quick"
            assert before.is_silent()
            assert proxy.connections == 2


def test_refuse_keeps_the_port_and_lets_nobody_in_until_it_is_healed(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        client.echoed(b"x")
        proxy.refuse()

        with pytest.raises(ConnectionResetError):
            client.socket.recv(1)
        with pytest.raises(ConnectionRefusedError):
            Client(proxy)
    proxy.heal()
    with Client(proxy) as client:
        assert client.echoed(b"again") == b"again"


def test_delay_holds_each_chunk_back_and_keeps_the_order(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        client.echoed(b"x")
        proxy.delay(0.2)
        began = time.monotonic()
        client.socket.settimeout(5)
        for number in range(10):
            client.socket.sendall(b"%d" % number)
            time.sleep(0.01)
        received = b""
        while len(received) < 10:
            received += client.socket.recv(100)
        took_s = time.monotonic() - began

        assert received == b"0123456789"
        assert 0.4 <= took_s < 1.5  # there and back, and not once for each chunk
        proxy.heal()
        assert client.echoed(b"quick", 0.2) == b"quick"


def test_trickle_slows_the_answers_and_nothing_else(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        proxy.trickle(20_000)
        began = time.monotonic()
        assert client.echoed(b"x" * 10_000) == b"x" * 10_000
        took_s = time.monotonic() - began

        assert 0.4 <= took_s < 2
        proxy.heal()
        assert client.echoed(b"y" * 10_000, 0.4) == b"y" * 10_000


def test_the_port_may_be_chosen(echo_port: int) -> None:
    with fault_proxy(echo_port, port=free_port()) as proxy, Client(proxy) as client:
        assert client.echoed(b"x") == b"x"


def test_a_target_that_is_not_there_resets() -> None:
    with fault_proxy(free_port()) as proxy, pytest.raises(ConnectionResetError), Client(proxy) as client:
        client.socket.recv(1)


def _heard(channel: "redis_py.client.PubSub", last: bytes) -> list[bytes]:
    """What arrives, up to a message that is published again until it comes through."""
    heard: list[bytes] = []
    while not heard or heard[-1] != last:
        message = channel.get_message(timeout=5)
        assert message is not None
        if message["type"] == "message":
            heard.append(message["data"])
    return heard


def test_a_share_of_the_pushed_messages_is_dropped_each_as_a_whole(redis: Redis) -> None:
    """Also on a connection that was opened before, and in the midst of what else a subscriber is told."""
    with (
        fault_proxy(redis.port) as proxy,
        redis.client() as publisher,
        redis_py.Redis(port=proxy.port, protocol=2) as client,
        client.pubsub() as channel,
    ):
        channel.subscribe("proxy:a")
        publisher.publish("proxy:a", "before")
        assert _heard(channel, b"before") == [b"before"]
        proxy.drop_messages(0.5, seed=1)
        sent = [b"%d\r\n*3\r\n" % number + b"x" * (number % 7) * 10_000 for number in range(200)]
        for data in sent:
            publisher.publish("proxy:a", data)
        channel.subscribe("proxy:b")
        until_sync(lambda: publisher.pubsub_numsub("proxy:b")[0][1] == 1, what="subscribed")
        proxy.heal()
        publisher.publish("proxy:b", "after")
        heard = _heard(channel, b"after")[:-1]

        assert 60 < len(heard) < 140
        assert proxy.dropped == len(sent) - len(heard)
        assert heard == [data for data in sent if data in heard]
        assert client.get("proxy:nothing") is None


def test_answers_that_are_no_pushed_messages_are_never_dropped(redis: Redis) -> None:
    with fault_proxy(redis.port) as proxy, redis_py.Redis(port=proxy.port, protocol=2) as client:
        proxy.drop_messages(1.0)
        client.rpush("proxy:list", "message", "y" * 100_000, "", "z")

        assert client.lrange("proxy:list", 0, -1) == [b"message", b"y" * 100_000, b"", b"z"]
        assert client.eval("return {1, {'message', {}}, false}", 0) == [1, [b"message", []], None]
        client.delete("proxy:list")
