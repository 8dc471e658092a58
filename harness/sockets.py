"""Connections as the kernel sees them, and a reader that vanishes from the network."""

import ctypes
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from harness.replicas import Reader

_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_RETURN = 0x06  # BPF_RET | BPF_K, <linux/bpf_common.h>


class Held(NamedTuple):
    """One end of a connection. Units: bytes the kernel holds, not yet acknowledged and not yet read."""

    unsent: int
    unread: int


def held(port: int, peer_port: int) -> Held | None:
    """What the kernel holds at the end that has `port`; None when it knows no such connection any more."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if (_port(local), _port(remote)) == (port, peer_port):
            unsent, unread = queues.split(":")
            return Held(int(unsent, 16), int(unread, 16))
    return None


def own_port(stream: Reader) -> int:
    port: int = stream.writer.get_extra_info("sockname")[1]
    return port


def vanish(stream: Reader) -> None:
    """The reader's machine loses its network: nothing that arrives is seen, so nothing is acknowledged.

    A filter on the socket drops each packet before TCP reads it. It needs no privilege and no firewall.
    """
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _RETURN, 0, 0, 0), 8)  # accept 0 bytes
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    stream.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
