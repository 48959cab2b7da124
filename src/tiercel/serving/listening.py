"""Listening sockets: bound once by the supervisor, shared by the workers, and closed without losing who is in the queue.

Connections wait in the kernel until a worker accepts them. Whoever closes the last copy of the socket resets those that
wait, and there is no moment between "the queue is empty" and "closed". So the door is shut first: a packet filter on the
socket drops new connection requests (their senders try again and are then refused), while those that have begun arrive.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys

BACKLOG = 2048
# SO_ATTACH_FILTER and SO_TIMESTAMPNS of Linux; Python's socket module does not name them.
_ATTACH_FILTER, _STAMP = 26, 35
# From the TCP header: byte 13 holds the flags. SYN without ACK asks for a new connection: keep 0 bytes of it.
_DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte
        (0x54, 0, 0, 0x12),  # & (ACK | SYN)
        (0x15, 0, 1, 0x02),  # only SYN?
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # pass
    )
)
_N_INSTRUCTIONS = len(_DROP_SYN) // 8
_N_WAITING_AT = 24  # of tcpi_unacked in struct tcp_info: for a listening socket, connections in its queue


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    The kernel stamps what comes on its connections, where it can: `tiercel._hot.stamps` asks how long it was not read.

    Raises:
        OSError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":
            # Connections inherit it. Set for each of them, a server with few would switch the whole system's stamps on and off.
            with contextlib.suppress(OSError):
                listener.setsockopt(socket.SOL_SOCKET, _STAMP, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener


def adopt(fd: int) -> socket.socket:
    """The listening socket behind an inherited descriptor."""
    return socket.socket(fileno=fd)


def shut_door(listener: socket.socket) -> bool:
    """Let no new connection in, for every process that shares the socket; False where the system cannot (not Linux)."""
    if sys.platform != "linux":
        return False
    program = ctypes.create_string_buffer(_DROP_SYN)
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", _N_INSTRUCTIONS, ctypes.addressof(program))
        )
    except OSError:  # a sandbox may forbid it
        return False
    return True


def n_waiting(listener: socket.socket) -> int | None:
    """Connections in the queue that nobody has accepted yet; None where the system does not say."""
    if sys.platform != "linux":
        return None
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    except OSError:
        return None
    return int.from_bytes(info[_N_WAITING_AT : _N_WAITING_AT + 4], sys.byteorder)


def address(host: str, listener: socket.socket) -> str:
    """`http://host:port` of a bound socket."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
