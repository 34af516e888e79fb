"""A TCP proxy on 127.0.0.1 whose network can be cut, and whose speed can be bounded."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from typing import Any, Literal

HOST = "127.0.0.1"
_PIECE = 1 << 16
_START_S = 10.0

Cut = Literal["refuse", "swallow"]
"""refuse: connections are reset and new ones refused, as by a firewall that rejects. swallow: nothing passes any more and nobody is told,
as when packets are lost; what was under way arrives after the cut, as TCP sends it again."""


class Proxy:
    """Forwards connections to 127.0.0.1:``to``, in a thread of its own; a context manager.

    Args:
        to: the port it forwards to; nobody has to listen there yet.
        port: the port it listens on.
        bytes_per_s: bound on what all connections together receive from the other side; None: none.
    """

    def __init__(self, to: int, port: int, bytes_per_s: float | None = None) -> None:
        self.to, self.port = to, port
        self._rate, self._free_at = bytes_per_s, 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._open.set()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, how: Cut = "refuse") -> int:
        """Cuts the network until ``mend``; returns how many connections that hit."""
        return int(self._do(self._cut(how)))

    def mend(self) -> None:
        """Undoes ``cut``. Does nothing when it is not cut."""
        self._do(self._mend())

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._link, HOST, self.port)

    async def _cut(self, how: Cut) -> int:
        hit = len(self._links)
        if how == "swallow":
            self._open.clear()
        else:
            await self._close()
        return hit

    async def _mend(self) -> None:
        self._open.set()
        if self._server is None:
            await self._listen()

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        links = dict(self._links)
        for task, writers in links.items():
            for writer in writers:
                writer.transport.abort()
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = (writer,)
        try:
            await self._open.wait()
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection(HOST, self.to)
                self._links[task] = (writer, back)
                await asyncio.gather(self._pump(reader, back, bounded=False), self._pump(there, writer, bounded=True))
        except asyncio.CancelledError:
            pass  # by a cut; asyncio's server would print it
        finally:
            for end in self._links.pop(task):
                end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, bounded: bool) -> None:
        """Until one side closes: then an error ends the other direction too."""
        while piece := await source.read(_PIECE):
            await self._open.wait()
            if bounded and self._rate:
                now = time.monotonic()
                self._free_at = max(self._free_at, now) + len(piece) / self._rate
                await asyncio.sleep(self._free_at - now)
                await self._open.wait()
            sink.write(piece)
            await sink.drain()
        raise ConnectionResetError("closed by one side")
