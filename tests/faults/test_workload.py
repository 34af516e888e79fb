"""The stream and its answer, against a loop in plain Python over the payloads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.faults import workload
from tests.faults.workload import TOPIC, Workload


def records(stream: Workload) -> dict[tuple[int, int], bytes]:
    """(partition, offset) -> payload, as a broker numbers them."""
    found: dict[tuple[int, int], bytes] = {}
    ends = [0] * stream.partitions
    for partition, payloads in stream.payloads():
        for payload in payloads:
            found[partition, ends[partition]] = payload
            ends[partition] += 1
    return found


def good(payload: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(payload)
    except ValueError:
        return None
    whole = event["value"] is None or (type(event["value"]) is int and -(2**63) <= event["value"] < 2**63)
    return event if whole and event.get("ts") is not None else None


def answer(stream: Workload) -> dict[tuple[int, str | None], tuple[int, int | None, int | None, int | None]]:
    groups: dict[tuple[int, str | None], list[int | None]] = {}
    for payload in records(stream).values():
        event = good(payload)
        if event is not None:
            groups.setdefault((event["ts"] // 1_000 * 1_000, event["key"]), []).append(event["value"])
    found: dict[tuple[int, str | None], tuple[int, int | None, int | None, int | None]] = {}
    for group, values in groups.items():
        numbers = [value for value in values if value is not None]
        found[group] = (len(values), sum(numbers), min(numbers), max(numbers)) if numbers else (len(values), None, None, None)
    return found


@settings(max_examples=examples(20), deadline=None)
@given(seed=st.integers(0, 2**32), events=st.integers(0, 3_000), partitions=st.integers(1, 5))
def test_the_answer_is_that_of_a_loop_over_the_payloads(seed: int, events: int, partitions: int) -> None:
    stream = Workload.of(seed, events, partitions)
    expected = {(row["window_start"], row["key"]): (row["n"], row["total"], row["low"], row["high"]) for row in stream.expected().to_pylist()}
    assert expected == answer(stream)


@settings(max_examples=examples(10), deadline=None)
@given(seed=st.integers(0, 2**32), events=st.integers(0, 3_000), partitions=st.integers(1, 5))
def test_the_letters_are_the_payloads_that_are_no_events(seed: int, events: int, partitions: int) -> None:
    stream = Workload.of(seed, events, partitions)
    letters = {(row["split"], row["position"]): row["payload"] for row in stream.expected_letters().to_pylist()}
    found = records(stream)
    assert letters == {(f"{TOPIC}-{partition}", offset): payload for (partition, offset), payload in found.items() if good(payload) is None}
    ends = [max((offset + 1 for p, offset in found if p == partition), default=0) for partition in range(partitions)]
    assert ends == stream.sizes


def test_a_stream_has_what_makes_it_hard() -> None:
    stream = Workload.of(1, 300_000)
    rows = stream.expected()
    assert len(rows) > 10_000
    assert None in rows["key"].to_pylist()
    assert max(map(abs, filter(None, rows["total"].to_pylist()))) > 2**55
    assert rows["total"].null_count > 0
    assert set(stream.expected_letters()["error_type"].to_pylist()) == {"malformed", "type", "no_event_time"}
    assert 80 < np.mean([len(payload) for payload in records(stream).values()]) < 120


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_late(seed: int) -> None:
    stream = Workload.of(seed, 20_000)
    for partition in range(stream.partitions):
        ts = stream.ts[stream.partition == partition]
        behind = np.maximum.accumulate(ts) - ts
        assert 0 < behind.max() <= workload.DISORDER_MS < workload.JOB_DISORDER_MS


def test_a_seed_is_a_stream() -> None:
    first, again, other = (list(Workload.of(seed, 1_000).payloads()) for seed in (7, 7, 8))
    assert first == again != other


def test_a_chunk_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = records(Workload.of(3, 2_000))
    monkeypatch.setattr(workload, "_CHUNK", 77)
    assert records(Workload.of(3, 2_000)) == whole


def test_a_sum_beyond_int64_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "HUGE", 2**63)
    monkeypatch.setattr(workload, "HUGE_SHARE", 1.0)
    with pytest.raises(OverflowError, match="seed 5 does not fit int64"):
        Workload.of(5, 100_000).expected()
