"""What surrounds a run: one at a time, its view, its logs, its signals."""

from __future__ import annotations

import fcntl
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType

from streamgauge.pipelines.job import JobError
from streamgauge.pipelines.live import View, view

SILENCE_SECONDS = 3.0


@contextmanager
def shown_as(name: str, json_lines: bool) -> Iterator[View]:
    shown = view(name, json_lines=json_lines)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def waiting_for(what: str, shown: View) -> Iterator[None]:
    """Says what is waited for, as a line of progress, when it takes longer than people think natural."""
    timer = threading.Timer(SILENCE_SECONDS, lambda: shown.say(f"  waiting for {what} ..."))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def only_run(folder: Path, name: str) -> Iterator[None]:
    """One run of a job at a time: two would overwrite each other's checkpoints."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JobError(f"{name} is running already, in {folder}; stop it first, or give the copy another file name") from None
        yield


@contextmanager
def logs_to(path: Path) -> Iterator[None]:
    """What Beam and the workers log goes to a file: people see the view, and a line for each failure.

    Threads that the run leaves behind (Beam's connections have some) end in silence after it.
    """
    others = set(threading.enumerate())
    path.unlink(missing_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    hook = threading.excepthook

    def log_thread(args: threading.ExceptHookArgs) -> None:
        # Beam's connections to the job server end with an exception in their threads when it stops.
        root.warning("thread %s ended", args.thread and args.thread.name, exc_info=args.exc_value)

    threading.excepthook = log_thread
    try:
        yield
    finally:
        left = set(threading.enumerate()) - others

        def show_thread(args: threading.ExceptHookArgs) -> None:
            if args.thread not in left:
                hook(args)

        threading.excepthook = show_thread if left else hook
        root.handlers = before or [logging.NullHandler()]  # without any, Python prints warnings on standard error
        handler.close()


@contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Beam's worker prints the stack trace of every failed bundle, besides logging it."""
    with path.open("a") as file, redirect_stderr(file):
        yield


@contextmanager
def interrupts(*, at_once: bool = False) -> Iterator[threading.Event]:
    """Set by Ctrl-C and by SIGTERM; a second one, or with ``at_once`` the first, raises KeyboardInterrupt too."""
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        again = event.is_set()
        event.set()
        if again or at_once:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
