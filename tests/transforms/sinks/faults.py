"""Sinks under faults: rows as jobs emit them, a driver that repeats failed bundles as a runner does, a server that fails on demand."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

import numpy as np
from apache_beam.utils.timestamp import Timestamp

from streamgauge.transforms.config import Choice
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.write import _WriteDoFn
from tests.transforms.sinks import cases

Row = dict[str, Any]
FAULTS = 12
"""After so many the world is well again: a runner that may repeat for ever ends up with everything stored."""


class Crash(BaseException):
    """The worker is gone in the middle of what it did."""


def job(random: Random, poison: Row | None = None) -> list[list[Row]]:
    """Bundles of a job: of each key early results, then a final one, then corrections; some keys hold ``poison``. In every second job some rows
    are withdrawn, and some of those come back.

    What a row holds is a function of its key and its revision, as in every job.
    """
    histories = []
    sessions = random.random() < 0.5
    for hour in range(random.randint(1, 4)):
        for origin in random.sample(["JFK", "LGA", "", None], random.randint(1, 4)):
            revisions = sorted(random.sample(range(1, 30), random.randint(1, 6)))
            final_from = random.randrange(len(revisions))
            held = poison if poison and random.random() < 0.2 else {}
            make = cases.session if sessions else cases.result
            rows = [
                make(hour=hour, origin=origin, revision=revision, count=revision * 7, final=index >= final_from) | held
                for index, revision in enumerate(revisions)
            ]
            if sessions and random.random() < 0.5:
                gone = random.randrange(len(rows))
                rows[gone] = cases.withdrawal(rows[gone], revisions[gone]) | held
                rows[gone + 1 :] = [row | {"final": True} for row in rows[gone + 1 :]]
            histories.append(rows)
    bundles: list[list[Row]] = []
    while any(histories):
        taken = random.sample(histories, random.randint(1, len(histories)))
        bundles.append([history.pop(0) for history in taken if history])
    return [bundle for bundle in bundles if bundle]


def drive(
    to: Choice, bundles: list[list[Row]], random: Random, trouble: Callable[[_WriteDoFn], AbstractContextManager[None]]
) -> tuple[dict[tuple[str, int], bytes], int]:
    """Writes all bundles; ``trouble`` may break something around each of the first tries.

    Bundles are tried again when they fail, cut in another way, by the same worker or by a new one, from the last checkpoint or, as
    after a failure before it was complete, from an older one. In between, and last of all, a worker that was replaced long ago wakes up
    and writes what is old by then: so the order of writing alone makes nothing right.

    Returns:
        The payloads of the dead letters by split and position; how many bundles failed.
    """
    worker = _worker(to)
    letters: dict[tuple[str, int], bytes] = {}
    stored = failed = tries = 0
    while stored < len(bundles):
        ahead = min(len(bundles), stored + random.randint(1, 4))
        try:
            for start, end in _cuts(stored, ahead, random):
                tries += 1
                with trouble(worker) if tries <= FAULTS else _well():
                    found = _bundle(worker, bundles[start:end])
                letters |= found
        except (SinkError, Crash) as error:
            failed += 1
            assert tries <= FAULTS, f"nothing is broken any more, and yet: {error!r}"
            if isinstance(error, Crash) or random.random() < 0.3:
                worker = _worker(to)
            stored = max(0, stored - random.choice([0, 0, 1, 3]))
            continue
        stored = max(0, ahead - 3) if tries <= FAULTS and random.random() < 0.2 else ahead
        if random.random() < 0.2 or stored == len(bundles):
            zombie = _worker(to)
            start = random.randrange(ahead)
            letters |= _bundle(zombie, bundles[start : random.randint(start + 1, ahead)])
            zombie.teardown()
    worker.teardown()
    return letters, failed


def same_letters(letters: dict[tuple[str, int], bytes], refused: list[list[Row]]) -> None:
    """Asserts that of each refused key the last row, and none that is not refused, became a dead letter with its own content.

    Of a key's rows a bundle writes the newest only, so an earlier one may never come to the store.
    """
    rows = [row for bundle in refused for row in bundle]
    found = {}
    for (split, revision), payload in letters.items():
        key, row = json.loads(split), json.loads(payload)
        assert {name: row[name] for name in key} == key and row["revision"] == revision and set(key) == set(cases.ROWS.key)
        found[key["window_start"], key["origin"], revision] = (row["count"], row["final"], row["label"])
    wanted = {(_iso(row["window_start"]), row["origin"], row["revision"]): (row["count"], row["final"], row["label"]) for row in rows}
    assert found.items() <= wanted.items()
    last = {(start, origin): max(r for s, o, r in wanted if (s, o) == (start, origin)) for start, origin, _ in wanted}
    assert {(start, origin, revision) for (start, origin), revision in last.items()} <= set(found)


def _iso(moment: int) -> str:
    text: str = np.datetime_as_string(np.datetime64(moment, "us"))
    return f"{text}Z"


def _worker(to: Choice) -> _WriteDoFn:
    worker = _WriteDoFn(to, None)
    worker.setup()
    return worker


def _cuts(start: int, end: int, random: Random) -> Iterator[tuple[int, int]]:
    while start < end:
        step = random.randint(1, end - start)
        yield start, start + step
        start += step


def _bundle(worker: _WriteDoFn, batches: list[list[Row]]) -> dict[tuple[str, int], bytes]:
    worker.start_bundle()
    for rows in batches:
        for batch in cases.to_table(rows).to_batches():
            worker.process(batch, Timestamp(0))
    emitted = [row for value in worker.finish_bundle() for row in value.value.to_pylist()]
    return {(row["split"], row["position"]): row["payload"] for row in emitted}


@contextmanager
def _well() -> Iterator[None]:
    yield


Answer = tuple[int, str, bytes]


class FaultyServer(ThreadingHTTPServer):
    """An HTTP server in front of ``take``; ``faults`` says what happens to each request, by its path: see ``KINDS``."""

    KINDS = ("ok", "refuse", "cut before", "cut after", "half", "500", "503 after", "silent", "silent after")
    daemon_threads = True

    def __init__(self, take: Callable[[str, str, bytes], Answer], faults: Callable[[str], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.take, self.faults = take, faults
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> FaultyServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A connection that broke is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        fault = self.server.faults(self.path)
        if fault == "refuse":
            self._cut()
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if fault == "half":
            ends = [match_end for match_end, _ in lines(body)]
            body = body[: ends[len(ends) // 2 - 1] if len(ends) > 1 else 0]
        if fault in ("ok", "cut after", "503 after", "silent after") or (fault == "half" and body):
            status, kind, answer = self.server.take(self.command, self.path, body)
        if fault.startswith("silent"):
            self.server.over.wait(20)
        if fault in ("cut before", "cut after", "half") or fault.startswith("silent"):
            self._cut()
            return
        if fault != "ok":
            status, kind, answer = int(fault.split()[0]), "text/plain", b"out of order"
        self.send_response(status)
        if status != 204:
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815

    def _cut(self) -> None:
        """Closes with a reset, as the kernel does for a process that died."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


def lines(body: bytes) -> Iterator[tuple[int, Row]]:
    """Rows of QuestDB's line protocol, version 2, each with the offset of its end: ``table field=value,... microseconds``."""
    field = re.compile(rb'([^=,]+)=(?:"((?:[^"\\]|\\.)*)"|=\x10(.{8})|(-?\d+)[it]|([tf]))([, ])', re.DOTALL)
    at = 0
    while at < len(body):
        at = body.index(b" ", at) + 1
        row: Row = {}
        more = b","
        while more == b",":
            match = field.match(body, at)
            assert match is not None, body[at : at + 80]
            name, text, double, whole, flag, more = match.groups()
            at = match.end()
            if text is not None:
                row[name.decode()] = re.sub(rb"\\(.)", rb"\1", text, flags=re.DOTALL).decode()
            elif double is not None:
                (row[name.decode()],) = struct.unpack("<d", double)
            else:
                row[name.decode()] = int(whole) if whole is not None else flag == b"t"
        end = body.index(b"t\n", at)
        row[""] = int(body[at:end])
        at = end + 2
        yield at, row
