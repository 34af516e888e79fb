"""Short bundles in the Python workers that this project starts: what Beam's worker does besides, once a bundle, costs more than most of ours hold."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

from apache_beam.runners.worker import statesampler
from apache_beam.runners.worker.bundle_processor import BundleProcessor
from apache_beam.runners.worker.operations import SdfProcessSizedElements

from streamgauge.transforms.pace import PACE

SWITCH_SECONDS = 0.0005
"""How long a thread that computes keeps others of Python waiting: a bundle goes through several (connections, worker, state), and Python's
default of 5 ms is more than most bundles take."""


def quick_bundles() -> None:
    """For this process; what it has imported by now is not looked at by the garbage collector any more.

    - Beam has a thread for each bundle that looks every so often which step runs (for metrics in milliseconds, and a log line when a step takes minutes), and ends the
      bundle only when that thread has slept enough: up to a sixth of the bundle's length.
    - It reports some dozen metrics of each bundle, times and sizes of every step, which the JVM adds up: a millisecond on each side. Ours are those that
      the steps count themselves (events_read, rows_written, ...).
    - A full collection of garbage walks through all that was ever imported, a tenth of a second in which nothing else runs.

    It also tells of bundles that do not read: see pace.py.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    statesampler.StateSampler.start = _start
    statesampler.StateSampler.stop = _stop
    BundleProcessor.monitoring_infos = _own_counters
    BundleProcessor.process_bundle = _process_bundle
    gc.collect()
    gc.freeze()


def _start(self: statesampler.StateSampler) -> None:
    self.tracked_thread = threading.current_thread()
    statesampler.set_current_tracker(self)
    self.started = True


def _stop(self: statesampler.StateSampler) -> None:
    statesampler.set_current_tracker(None)
    self.finished = True


_PROCESS_BUNDLE = BundleProcessor.process_bundle


def _process_bundle(self: BundleProcessor, *arguments: Any) -> Any:
    if any(isinstance(step, SdfProcessSizedElements) for step in self.ops.values()):
        return _PROCESS_BUNDLE(self, *arguments)
    with PACE.bundle():
        return _PROCESS_BUNDLE(self, *arguments)


def _own_counters(self: BundleProcessor) -> list[Any]:
    return [info for name, step in self.ops.items() for info in step.user_monitoring_infos(name).values()]
