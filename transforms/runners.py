"""What runners of Beam do differently."""

from __future__ import annotations

from typing import Any

from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, SwitchingDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner


def keeps_time(runner: Any) -> bool:
    """Whether the runner fires event-time timers when their time has come. Beam's FnApiRunner, for bounded input, fires them whenever a
    splittable DoFn pauses: there nothing is forgotten, and memory grows with the input."""
    return not isinstance(runner, (FnApiRunner, SwitchingDirectRunner))


def keeps_order(runner: Any) -> bool:
    """Whether the runner also fires the timers of a step before those of the steps behind it. The BundleBasedDirectRunner, for tests with a
    TestStream, fires them together: what a timer emits comes behind the watermark that fired it."""
    return keeps_time(runner) and not isinstance(runner, BundleBasedDirectRunner)
