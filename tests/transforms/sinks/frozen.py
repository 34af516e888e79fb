"""A worker that is stopped in the middle of a write (SIGSTOP), and goes on after its replacement has written."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from streamgauge.transforms.config import Choice
from streamgauge.transforms.rows import RowSpec
from tests.transforms.sinks import cases

Moment = Callable[[Callable[[], None]], None]
"""Arranges that the function it is given is called, once, in the middle of a write."""


class Frozen:
    """The stopped process; ``wake`` lets it finish."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def wake(self) -> None:
        """Returns when its write is done."""
        os.kill(self._process.pid, signal.SIGCONT)
        self._process.join()
        assert self._process.exitcode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@contextmanager
def frozen(to: Choice, rows: list[dict[str, Any]], moment: Moment) -> Iterator[Frozen]:
    """A process that opened the sink and stands still in its write of ``rows``."""
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(to, rows, moment))
    process.start()
    try:
        # Returns when the process stops (or ends); it is not yet collected, so that `join` still works.
        _, status = os.waitpid(process.pid or 0, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the write was over before its moment came"
        yield Frozen(process)
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def _write(to: Choice, rows: list[dict[str, Any]], moment: Moment) -> None:
    sink = to.create()
    schema = cases.schema_of(rows)
    sink.open(schema, RowSpec.of(schema))
    moment(_stop_once())
    assert sink.write(cases.to_table(rows)) == []
    sink.close()


def _stop_once() -> Callable[[], None]:
    stopped: list[bool] = []

    def stop() -> None:
        if not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)

    return stop
