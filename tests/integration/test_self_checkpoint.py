"""The patched runner: checkpoints stay small over many self-checkpoints, and milliseconds are kept.

STREAMGAUGE_TEST_SELF_CHECKPOINTS sets how many are made (50,000 by default, about a minute and a half).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import psutil
import pytest
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from streamgauge.pipelines.services.flink import EmbeddedFlink, latest_checkpoint

pytestmark = pytest.mark.integration

SELF_CHECKPOINTS = int(os.environ.get("STREAMGAUGE_TEST_SELF_CHECKPOINTS", "20000"))
SPLITS = 8
WINDOW_S = 0.25
GIVE_UP_S = 600.0

# The Python worker of LOOPBACK is a thread of this process, so the DoFns can leave notes here.
CALLS: dict[int, list[tuple[float, int]]] = {}
LAGS: list[tuple[float, float]] = []


class Forever(RestrictionProvider):
    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, 1 << 40)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        return 1

    def split(self, element: int, restriction: OffsetRange) -> Iterator[OffsetRange]:
        yield restriction


TRACKER = beam.DoFn.RestrictionParam(Forever())
WATERMARK = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())


class OnePerBundle(beam.DoFn):
    """Emits the time as an event, then asks to be resumed `delay_s` seconds later."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        tracker: Any = TRACKER,
        watermark: Any = WATERMARK,
    ) -> Iterator[TimestampedValue]:
        now = time.time()
        position = tracker.current_restriction().start
        CALLS.setdefault(element, []).append((now, position))
        if tracker.try_claim(position):
            yield TimestampedValue((element, 1), Timestamp.of(round(now, 3)))
            watermark.set_watermark(Timestamp.of(round(now, 3)))
            tracker.defer_remainder(Duration(micros=int(self._delay_s * 1e6)))


def note_lag(pair: Any, window: Any = beam.DoFn.WindowParam) -> Any:
    LAGS.append((float(window.end), time.time() - float(window.end)))
    return pair


@contextmanager
def job(flink: EmbeddedFlink, splits: int, delay_s: float, *options: str) -> Iterator[str]:
    """Run the job and yield its Flink id once its source is called; it is cancelled at the end."""
    CALLS.clear()
    LAGS.clear()
    pipeline = beam.Pipeline(options=PipelineOptions([*flink.pipeline_options(), *options]))
    (
        pipeline
        | beam.Create(range(splits))
        | beam.ParDo(OnePerBundle(delay_s)).with_output_types(tuple[int, int])
        | beam.WindowInto(FixedWindows(WINDOW_S))
        | beam.GroupByKey()
        | beam.Map(note_lag)
    )
    result = pipeline.run()
    wait_for(lambda: len(CALLS) == splits, 60)
    job_id = flink.jobs()[0]["jid"]
    yield job_id
    flink.cancel(job_id)
    thread = threading.Thread(target=lambda: _ended(result), daemon=True)
    thread.start()
    thread.join(10)


def _ended(result: Any) -> None:
    try:
        result.wait_until_finish()
    except Exception:  # a cancelled job counts as failed on this runner
        return


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)
    return found


def completed(flink: EmbeddedFlink, job_id: str, after: int = 0) -> dict[str, Any]:
    """The latest completed checkpoint beyond number `after`."""

    def newer() -> dict[str, Any] | None:
        latest = flink.checkpoints(job_id)["latest"]["completed"]
        return latest if latest and latest["id"] > after else None

    return dict(wait_for(newer, 30))


def resumed() -> int:
    return sum(map(len, CALLS.values()))


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[int(len(values) * q)]


def test_checkpoints_stay_flat_and_no_residual_is_lost(tmp_path: Path) -> None:
    with (
        EmbeddedFlink(tmp_path, parallelism=2) as flink,
        job(flink, SPLITS, 0.0, "--max_bundle_time_mills=2") as job_id,
    ):
        wait_for(lambda: resumed() > min(1000, SELF_CHECKPOINTS / 10), 60)
        early = completed(flink, job_id, after=2)
        wait_for(lambda: resumed() >= SELF_CHECKPOINTS, GIVE_UP_S)
        late = completed(flink, job_id, after=early["id"])
        print(f"{resumed()} self-checkpoints: {early['state_size']} -> {late['state_size']} bytes, "
              f"{flink.checkpoints(job_id)['counts']}")  # fmt: skip
        assert late["state_size"] < 1.1 * early["state_size"] + 2000
        assert flink.exceptions(job_id) == []
    for calls in CALLS.values():  # nothing lost, nothing twice
        assert [position for _, position in calls] == list(range(len(calls)))


def test_without_the_patch_they_grow(tmp_path: Path) -> None:
    """Guards the test above: it has to be able to fail."""
    with EmbeddedFlink(tmp_path, parallelism=1, patched=False) as flink, job(flink, 4, 0.0) as job_id:
        early = completed(flink, job_id)
        wait_for(lambda: resumed() > 1500, 60)
        late = completed(flink, job_id, after=early["id"])
        print(f"{resumed()} self-checkpoints: {early['state_size']} -> {late['state_size']} bytes")
        assert late["state_size"] > early["state_size"] + 500_000


def test_delays_and_watermarks_keep_their_milliseconds_and_restore_goes_on(tmp_path: Path) -> None:
    with EmbeddedFlink(tmp_path, parallelism=2) as flink, job(flink, 3, 0.1) as job_id:
        wait_for(lambda: min(map(len, CALLS.values())) > 60, 60)
        first = completed(flink, job_id, after=2)
        assert not list((tmp_path / "tmp").glob("flink-rpc*"))  # where Flink's own loader unpacks its RPC system
        leader = psutil.Process(flink.pid)
        sockets = [c for p in leader.children(recursive=True) for c in p.net_connections("tcp")]
        assert {c.laddr.ip for c in sockets if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        wait_for(lambda: flink.watermarks(job_id), 30)
        gaps = [after - before for calls in CALLS.values() for (before, _), (after, _) in pairwise(calls)]
        assert min(gaps) >= 0.1
        assert quantile(gaps, 0.5) < 0.2
        between = [lag for end, lag in LAGS[20:] if end % 1]
        print(f"gap p50 {quantile(gaps, 0.5):.3f} s; lag of windows ending between seconds: "
              f"p50 {quantile(between, 0.5):.3f} p95 {quantile(between, 0.95):.3f} s")  # fmt: skip
        assert quantile(between, 0.5) < 0.4
    kept = latest_checkpoint(tmp_path)
    assert kept is not None and int(kept.name.removeprefix("chk-")) >= first["id"]

    reached = {element: calls[-1][1] for element, calls in CALLS.items()}
    with EmbeddedFlink(tmp_path, parallelism=3, restore_from=kept) as flink, job(flink, 3, 0.1):  # rescaled, too
        wait_for(lambda: min(map(len, CALLS.values())) > 10, 60)
    for element, calls in CALLS.items():
        positions = [position for _, position in calls]
        # From the checkpoint, not from the start; it may have been taken after the last call, and then goes on behind that.
        assert 0 < positions[0] <= reached[element] + 1
        assert positions == list(range(positions[0], positions[0] + len(positions)))
