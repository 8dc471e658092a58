"""A publisher in processes that are forked: each has connections of its own, and the parent's stay as they are.

The forks are made in an interpreter of their own, so that pytest's threads are not forked.
"""

import json
import pickle
import subprocess
import sys
from collections import Counter
from typing import Any, TypeVar

import pytest
from harness.replicas import PUBLISH_KEY, ROOT, Replica

from allim.client import ClientError, NotConfirmed
from tests.client.scripted import ACCEPTED, scripted

T = TypeVar("T")

CHILDREN, EVENTS = 4, 25

FORKED = f"""
import json, os, sys, threading, traceback
from allim.client import Publisher

publisher = Publisher(sys.argv[1], sys.argv[2], timeout_s=50)
ids = []
go_on = threading.Event()

def publish(times, into):
    into += [publisher.publish("user:1", "t", os.getpid()).ids[0] for _ in range(times)]

def publish_in_threads(count, into, before=lambda: None):
    def work():
        publish(1, into)
        before()
        publish({EVENTS}, into)

    running = [threading.Thread(target=work) for _ in range(count)]
    for thread in running:
        thread.start()
    return running

def fork():
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            own = []
            for thread in publish_in_threads(2, own):
                thread.join()
            publisher.close()
            os.write(write, json.dumps(own).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    return read

threads = publish_in_threads(3, ids, go_on.wait)
while len(ids) < 3:
    go_on.wait(0.01)
reads = [fork() for _ in range({CHILDREN // 2})]  # while three connections are open and idle
go_on.set()
reads += [fork() for _ in range({CHILDREN // 2})]  # while threads use them
for thread in threads:
    thread.join()
for read in reads:
    with open(read) as file:
        ids.extend(json.load(file))
print(json.dumps(ids))
"""
FORKED_IDS = (3 + 2 * CHILDREN) * (1 + EVENTS)

POOLED = f"""
import json, multiprocessing, sys
from allim.client import Publisher

publisher = Publisher(sys.argv[1], sys.argv[2], timeout_s=50)

def publish(number):
    return publisher.publish("user:1", "t", number).ids[0]

if __name__ == "__main__":
    ids = [publish(-1)]
    with multiprocessing.get_context("fork").Pool({CHILDREN}) as pool:
        ids += pool.map(publish, range({CHILDREN * EVENTS}), chunksize=1)
    print(json.dumps(ids + [publish(-2)]))
"""
POOLED_IDS = 2 + CHILDREN * EVENTS

SIMPLE = """
import os, sys
from allim.client import Publisher

def sockets():
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.readlink(path).startswith("socket:") for path in paths if os.path.islink(path))

publisher = Publisher(sys.argv[1], "k", timeout_s=50)
publisher.publish("a", "t", "parent")
held = sockets()
for publishes in (True, False):
    pid = os.fork()
    if pid == 0:
        if publishes:
            publisher.publish("a", "t", "child")
            publishes = sockets() == held  # the inherited one is closed
        else:
            publisher.close()
            publishes = sockets() == held - 1
        os._exit(0 if publishes else 1)
    assert os.waitpid(pid, 0)[1] == 0
publisher.publish("a", "t", "parent")
"""

ASYNCHRONOUS = """
import asyncio, os, sys
from allim.client import AsyncPublisher

publisher = AsyncPublisher(sys.argv[1], "k", timeout_s=50)

async def main():
    await publisher.publish("a", "t", "parent")
    pid = os.fork()
    if pid == 0:
        return True
    os.waitpid(pid, 0)
    await publisher.publish("a", "t", "parent")
    return False

async def child():
    async with publisher:
        await publisher.publish("a", "t", "child")

loop = asyncio.new_event_loop()
if loop.run_until_complete(main()):
    asyncio.run(child())
    os._exit(0)
"""


def pickled(error: T) -> T:
    again: T = pickle.loads(pickle.dumps(error))
    return again


def test_errors_come_out_of_a_pool_of_processes_as_they_were_raised() -> None:
    refused = pickled(ClientError(403, {"detail": "no", "code": "forbidden"}))
    unknown = pickled(NotConfirmed("1 attempt", "the-key", True))

    assert (str(refused), refused.status, refused.problem["code"]) == ("no", 403, "forbidden")
    assert str(unknown) == "1 attempt; the event may be stored; idempotency key the-key"
    assert (unknown.idempotency_key, unknown.may_be_stored) == ("the-key", True)


def run(program: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout or "null")


@pytest.mark.parametrize(
    ("program", "expected"), [(FORKED, FORKED_IDS), (POOLED, POOLED_IDS)], ids=["os.fork", "multiprocessing"]
)
def test_forked_processes_publish_at_once_and_every_event_is_stored_once(
    server: Replica, program: str, expected: int
) -> None:
    ids = run(program, server.url, PUBLISH_KEY)

    assert len(ids) == expected
    assert [position for position, times in Counter(ids).items() if times > 1] == []


@pytest.mark.parametrize(
    ("program", "connections"), [(SIMPLE, [1, 2, 1]), (ASYNCHRONOUS, [1, 2, 1])], ids=["sync", "async"]
)
def test_a_child_opens_its_own_connection_and_leaves_the_parents_open(program: str, connections: list[int]) -> None:
    with scripted(ACCEPTED) as server:
        run(program, server.url)

    said = [(json.loads(asked.body)["data"], asked.connection) for asked in server.asked]
    assert said == list(zip(["parent", "child", "parent"], connections, strict=True))
