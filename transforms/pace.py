"""Reading goes at the pace of merging.

Where events are few for the machine, whoever reads is faster than whoever merges and writes. What it reads meanwhile then waits in front of that step, in
a queue that is never empty, and takes the processor from it. So a bundle that reads begins when one that merges has ended: with all that has come by then.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """The bundles of a process that do not read. Those of several subtasks are not told apart: of many there is one that ends soon."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = self._ended = 0

    @contextmanager
    def bundle(self) -> Iterator[None]:
        """Around one of them."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._ended += 1
                self._changed.notify_all()

    @property
    def is_running(self) -> bool:
        return self._running > 0

    def wait(self, seconds: float) -> None:
        """Until the next of them that run now has ended; returns at once when none does."""
        with self._changed:
            if self.is_running:
                ended = self._ended
                self._changed.wait_for(lambda: self._ended != ended, seconds)


PACE = Pace()
"""That of this process. Where nobody tells of bundles (see quick_bundles.py) nobody waits."""
