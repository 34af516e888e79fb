"""Progress of long work on stderr: a line redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

PLAIN_EVERY_S = 5.0


class Progress:
    """Counts bytes towards a total. Safe to advance from several threads."""

    def __init__(self, title: str, total: int, enabled: bool = True) -> None:
        """`total` in bytes; nothing is printed when not `enabled`."""
        self._title, self._total, self._done = title, total, 0
        self._enabled = enabled
        self._lock = threading.Lock()
        self._last = 0.0
        self._bar = None
        if enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif self._last and kind is None:
            self._line("done")

    def advance(self, amount: int) -> None:
        """Add `amount` bytes (negative when some have to be fetched again)."""
        with self._lock:
            self._done += amount
            if self._bar:
                self._bar.update(self._task, completed=self._done)
            elif self._enabled and time.monotonic() - self._last > PLAIN_EVERY_S:
                self._last = time.monotonic()
                self._line(f"{self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB")

    def note(self, text: str) -> None:
        """Print a remark on a line of its own."""
        if self._enabled:
            self._line(text)

    def _line(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(f"{self._title}: {text}")
        else:
            print(f"{self._title}: {text}", file=sys.stderr, flush=True)
