"""Ids of timers; those of transforms are tested with the jobs that resume, in test_compat.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.userstate import get_dofn_specs

from streamgauge.transforms import AggregateWindows, Deduplicate, ReadEvents
from streamgauge.transforms.deduplicate import _SeenDoFn
from streamgauge.transforms.merge import MergeDoFn
from streamgauge.transforms.stable_ids import own_timers

EVENTS = 6000
STEPS = 6


def generated(pipeline: beam.Pipeline) -> Any:
    source = {"generator": {"events": EVENTS, "splits": 2, "event_rate": 3000, "keys": 5, "seed": 1}}
    schema = {"ts": "int64", "host": "string", "value": "double"}
    return pipeline | ReadEvents(**{"from": source}, format={"json": {"schema": schema}}, time={"field": "ts", "unit": "ms"})


@pytest.mark.parametrize("kind", [MergeDoFn, _SeenDoFn])
def test_a_step_has_timers_of_its_own(kind: type[beam.DoFn]) -> None:
    own = own_timers(kind, "job/A")
    made, other = own.__new__(own), own_timers(kind, "job/B")
    names = {timer.name for timer in get_dofn_specs(made)[1]}
    assert names == {f"{timer.name}:job/A" for timer in get_dofn_specs(kind.__new__(kind))[1]}
    assert names.isdisjoint(timer.name for timer in get_dofn_specs(other.__new__(other))[1])
    for timer in get_dofn_specs(made)[1]:
        callback = timer._attached_callback
        assert getattr(own, callback.__name__) is callback


@pytest.mark.parametrize("kind", [MergeDoFn, _SeenDoFn])
def test_it_is_pickled_by_its_name(kind: type[beam.DoFn]) -> None:
    own = own_timers(kind, "job/A")
    made = own.__new__(own)
    made.kept = 7
    again = pickler.loads(pickler.dumps(made))
    assert type(again) is own
    assert again.kept == 7


def test_no_two_steps_share_a_timer() -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    events = generated(pipeline)
    for i in range(STEPS):
        kept = events | f"D{i}" >> Deduplicate(by=["host", "ts"], horizon="1s")
        _ = kept | f"A{i}" >> AggregateWindows(metric="same", window={"tumbling": "1s"}, aggregates={"n": "count"})
    transforms = pipeline.to_runner_api().components.transforms.values()
    payloads = [beam_runner_api_pb2.ParDoPayload.FromString(each.spec.payload) for each in transforms if each.spec.urn == "beam:transform:pardo:v1"]
    timers = [name for payload in payloads for name in payload.timer_family_specs]
    assert len(timers) == len(set(timers)) == 4 * STEPS


def test_every_step_of_a_direct_run_emits(tmp_path: Path) -> None:
    """Timers of one name: all but one of the steps emitted nothing, in one process of four."""
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        events = generated(pipeline)
        for i in range(STEPS):
            rows = events | f"A{i}" >> AggregateWindows(metric="same", window={"tumbling": "1s"}, aggregates={"n": "count"}, emit={"every": "1s"})
            _ = rows | f"P{i}" >> beam.Map(lambda batch, place: [print(row["events"], file=place.open("a")) for row in batch.to_pylist()], tmp_path / str(i))
    for i in range(STEPS):
        assert sum(map(int, (tmp_path / str(i)).read_text().split())) >= EVENTS
