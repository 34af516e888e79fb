"""Cutting and mending the proxy's network, with plain sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streamgauge.pipelines.services.process import free_port
from tests.faults.proxy import HOST, Proxy

SOON_S = 0.3
PATIENCE_S = 20.0


@contextmanager
def echo(port: int) -> Iterator[None]:
    """A server that sends back what it gets."""
    with socket.create_server((HOST, port)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=[connection], daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    while got := connection.recv(1 << 16):
                        connection.sendall(got)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    to = free_port()
    with echo(to), Proxy(to, free_port()) as running:
        yield running


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), PATIENCE_S)


def says(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return receive(client, len(text))


def receive(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (got := client.recv(size - len(found))):
        found += got
    return found


def test_it_forwards(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as two:
        big = bytes(range(256)) * 10_000
        sender = threading.Thread(target=one.sendall, args=[big])
        sender.start()
        assert receive(one, len(big)) == big
        sender.join()
        assert says(two, b"two") == b"two"


def test_a_refusing_cut_ends_connections_and_refuses_new_ones(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert says(client, b"before") == b"before"
        assert proxy.cut("refuse") == 1
        assert gone(client)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.mend()
    with connect(proxy) as client:
        assert says(client, b"after") == b"after"


def test_a_swallowing_cut_delays_what_was_sent(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert says(client, b"before") == b"before"
        assert proxy.cut("swallow") == 1
        client.sendall(b"during")
        with connect(proxy) as newcomer:
            newcomer.sendall(b"new")
            for waiting in (client, newcomer):
                waiting.settimeout(SOON_S)
                with pytest.raises(TimeoutError):
                    waiting.recv(1)
                waiting.settimeout(PATIENCE_S)
            proxy.mend()
            assert receive(client, 6) == b"during"
            assert receive(newcomer, 3) == b"new"


def test_a_cut_may_be_repeated_and_mended_twice(proxy: Proxy) -> None:
    for how in ("refuse", "swallow", "refuse", "refuse"):
        proxy.cut(how)
    for _ in range(2):
        proxy.mend()
    with connect(proxy) as client:
        assert says(client, b"after") == b"after"


def test_when_nobody_is_behind_it_connections_end() -> None:
    with Proxy(free_port(), free_port()) as proxy, connect(proxy) as client:
        assert gone(client)


def test_when_one_side_closes_the_other_is_closed(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert says(client, b"hello") == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert gone(client)


def gone(client: socket.socket) -> bool:
    """Whether the other side ends the connection."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
