"""Short bundles in the Python workers that this project starts: without Beam's sampling thread, and with quicker hand-overs between threads."""

from __future__ import annotations

import sys
import threading

from apache_beam.runners.worker import statesampler

SWITCH_SECONDS = 0.0005
"""How long a thread that computes keeps others of Python waiting: a bundle goes through several (connections, worker, state), and Python's
default of 5 ms is more than most bundles take."""


def quick_bundles() -> None:
    """For this process. Beam's worker has a thread for each bundle that looks every so often which step runs (metrics in milliseconds, a log line
    when a step takes minutes), and ends the bundle only when that thread has slept enough: up to a sixth of the bundle's length."""
    sys.setswitchinterval(SWITCH_SECONDS)
    statesampler.StateSampler.start = _start
    statesampler.StateSampler.stop = _stop


def _start(self: statesampler.StateSampler) -> None:
    self.tracked_thread = threading.current_thread()
    statesampler.set_current_tracker(self)
    self.started = True


def _stop(self: statesampler.StateSampler) -> None:
    statesampler.set_current_tracker(None)
    self.finished = True
