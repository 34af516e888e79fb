from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest
from apache_beam import coders
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2

from streamgauge.transforms.hashing import MAX_PARALLELISM, flink_key_group
from streamgauge.transforms.read import ReadEvents
from streamgauge.transforms.replay import ReplayPoint, SplitPoint
from streamgauge.transforms.sources.base import SourceError, Split
from streamgauge.transforms.splits import SplitElement, split_element, split_of, starting
from tests.memory import Memory, MemoryOptions, memory


def test_an_element_tells_its_split() -> None:
    split = Split("a-0", 3, 9)
    element = coders.registry.get_coder(SplitElement)
    for later in (False, True):
        encoded = element.encode(split_element(0, split, found_later=later))
        assert split_of(element.decode(encoded)) == (split, later)


def test_elements_are_spread_over_the_key_groups() -> None:
    groups = [flink_key_group(bytes(split_element(index, Split(f"t-{index}", 0)))) for index in range(8)]
    assert sorted(group * 8 // MAX_PARALLELISM for group in groups) == list(range(8))


def test_flink_is_shown_the_same_bytes_as_of_plain_bytes() -> None:
    element = split_element(0, Split("a", 0))
    assert coders.registry.get_coder(SplitElement).encode(element) == coders.BytesCoder().encode(bytes(element))


@pytest.mark.parametrize("endless", [False, True])
def test_splittable_dofns_whose_elements_share_a_coder_share_that_of_restrictions(endless: bool) -> None:
    """The runners in Java mix them up otherwise."""
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    for name in "ab":
        source = {"from": memory({"s": [b"{}"]}, endless=endless)}
        _ = pipeline | name >> ReadEvents(**source, format={"json": {"schema": {"ts": "timestamp"}}}, time={"field": "ts"})
    components = pipeline.to_runner_api().components
    found: dict[str, set[str]] = {}
    for transform in components.transforms.values():
        if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload: Any = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            if payload.restriction_coder_id:
                (main,) = transform.inputs.values()
                found.setdefault(components.pcollections[main].coder_id, set()).add(payload.restriction_coder_id)
    assert len(found) == (2 if endless else 1)
    assert all(len(restrictions) == 1 for restrictions in found.values())


def test_a_replay_places_the_splits_it_knows() -> None:
    replay = ReplayPoint({}, {"memory/a": SplitPoint("memory", 3, 9, 0), "memory/gone": SplitPoint("memory", 5, 5, 0), "kafka/x": SplitPoint("kafka:x", 0, 9, 0)})
    splits = [Split("a", 0, 20), Split("b", 7)]
    assert starting(Memory(MemoryOptions(payloads={})), splits, replay) == [Split("a", 3, 20), Split("b", 7)]
    assert starting(Memory(MemoryOptions(payloads={})), splits, None) == splits


def test_a_split_with_events_that_a_replay_needs_must_be_there() -> None:
    replay = ReplayPoint({}, {"memory/a": SplitPoint("memory", 3, 9, 0)})
    with pytest.raises(SourceError, match="memory: a must be read again and is not there any more; start anew with --fresh"):
        starting(Memory(MemoryOptions(payloads={})), [Split("b", 0)], replay)


def test_of_two_sources_with_a_split_of_one_name_the_smaller_end_counts() -> None:
    replay = ReplayPoint({}, {"kafka/t-0": SplitPoint("kafka:t", 0, 9, 0), "files/t-0": SplitPoint("files:t", 0, 4, 0)})
    assert replay.ends() == {"t-0": 4}
