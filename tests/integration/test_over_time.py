"""Early, on-time and late results on Flink: the cases of tests/transforms/test_over_time.py that need no clock, on its TestStream."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamgauge.pipelines.services.flink import EmbeddedFlink, silence_unknown_options
from tests.transforms.streamed import on_flink
from tests.transforms.test_over_time import *  # noqa: F403

# Steps that follow at once are one to the timers of sessions; see test_windows.py.
del test_a_late_event_joins_two_sessions  # noqa: F821

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    silence_unknown_options()
    with EmbeddedFlink(tmp_path_factory.mktemp("flink"), 1, 3_600_000) as started, on_flink(started):
        yield
