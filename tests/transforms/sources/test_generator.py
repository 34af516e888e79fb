"""Generated events: the same at every reading, and with the properties asked for."""

from __future__ import annotations

import json
import pickle
import time
from collections import Counter
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.sources.base import Split
from streamgauge.transforms.sources.generator import BLOCK, Generator, GeneratorOptions
from tests.examples import examples

START_MS = 1_767_225_600_000


def source(**options: object) -> Generator:
    return Generator(GeneratorOptions.model_validate(options))


def payloads(generator: Generator, split: Split, position: int = 0, until: int | None = None, max_records: int = 5000) -> list[bytes]:
    reader = generator.open(split, position)
    end = split.end if until is None else until
    assert end is not None
    found: list[bytes] = []
    while position < end:
        batch = reader.read(min(max_records, end - position), 1 << 30, 1.0)
        assert batch.newline_terminated
        assert batch.payloads.buffers()[2].to_pybytes() == b"".join(batch.payloads.to_pylist())
        assert batch.positions.tolist() == list(range(position, batch.next_position))
        assert batch.done == (batch.next_position == split.end)
        position = batch.next_position
        found += batch.payloads.to_pylist()
    return found


def events(generator: Generator, **which: Any) -> list[dict[str, Any]]:
    return [json.loads(p) for split in generator.splits() for p in payloads(generator, split, **which)]


@given(
    seed=st.integers(0, 2**64 - 1),
    splits=st.integers(1, 3),
    position=st.integers(0, 3 * BLOCK),
    count=st.integers(1, 2000),
    size=st.integers(1, 700),
)
@settings(max_examples=examples(30), deadline=None)
def test_a_replay_from_anywhere_gives_the_same_bytes(seed: int, splits: int, position: int, count: int, size: int) -> None:
    generator = source(seed=seed, splits=splits, skew=1.1, bad=0.1)
    split = generator.splits()[-1]
    whole = payloads(generator, split, 0, position + count)
    again: Generator = pickle.loads(pickle.dumps(generator))
    assert payloads(again, split, position, position + count, size) == whole[position:]


def test_known_bytes() -> None:
    """Stored: a change of these bytes would make replays of running jobs differ."""
    generator = source(events=20_000, keys=3000, skew=1, bad=0.01)
    lines = payloads(generator, generator.splits()[0])
    assert lines[0] == FIRST
    assert lines[19_999] == LAST


FIRST = b'{"ts":1767225600000,"user":110392,"metric":"metric-00","value":879.972,"host":"host-0000","region":"eu-west-1"}\n'
LAST = b'{"ts":1767225600000,"user":730100,"metric":"metric-17","value":418.677,"host":"host-2394","region":"us-west-2"}\n'


def test_events_look_as_described() -> None:
    found = events(source(events=50_000, keys=50, metrics=20))
    assert len(found) == 50_000
    for event in found:
        assert list(event) == ["ts", "user", "metric", "value", "host", "region"]
        assert 100_000 <= event["user"] < 1_000_000 and 100 <= event["value"] < 1000
    assert Counter(e["host"] for e in found).keys() == {f"host-{i:02d}" for i in range(50)}
    assert Counter(e["metric"] for e in found).keys() == {f"metric-{i:02d}" for i in range(20)}
    assert len({(e["host"], e["region"]) for e in found}) == 50
    assert len({e["region"] for e in found}) == 4
    assert len({e["value"] for e in found}) > 40_000


def test_event_time_moves_at_its_rate_with_bounded_disorder() -> None:
    generator = source(events=40_000, splits=2, event_rate=10_000, disorder="300ms")
    for split in generator.splits():
        times = [json.loads(p)["ts"] for p in payloads(generator, split)]
        assert min(times) >= START_MS
        assert START_MS + 3900 <= max(times) < START_MS + 4000
        behind = [latest - ts for latest, ts in zip(accumulate(times, max), times, strict=True)]
        assert 250 < max(behind) <= 300
    assert [e["ts"] for e in events(source(events=5, disorder="0s", event_rate=1000))] == [START_MS + i for i in range(5)]
    assert events(source(events=1, disorder="0s", start="2020-01-01T01:00:00+01:00"))[0]["ts"] == 1_577_836_800_000


def test_splits_and_seeds_differ_and_cover_all_events() -> None:
    generator = source(events=10_001, splits=3)
    assert [split.end for split in generator.splits()] == [3334, 3334, 3333]
    one, two, three = (payloads(generator, split) for split in generator.splits())
    assert len(set(one) & set(two)) == len(set(two) & set(three)) == 0
    other = source(events=10_001, splits=3, seed=1)
    assert not set(payloads(other, other.splits()[0])) & set(one)


def test_skew_follows_zipf() -> None:
    shares = Counter(e["host"] for e in events(source(events=100_000, keys=10, skew=1)))
    harmonic = sum(1 / k for k in range(1, 11))
    for k in range(10):
        assert shares[f"host-{k}"] / 100_000 == pytest.approx(1 / (k + 1) / harmonic, abs=0.01)


def _is_bad(payload: bytes) -> bool:
    try:
        return not isinstance(json.loads(payload.decode())["ts"], int)
    except ValueError:
        return True


def test_the_share_that_was_asked_for_is_damaged() -> None:
    generator = source(events=50_000, bad=0.02)
    good = source(events=50_000)
    damaged = payloads(generator, generator.splits()[0])
    intact = payloads(good, good.splits()[0])
    assert [_is_bad(d) for d in damaged] == [d != i for d, i in zip(damaged, intact, strict=True)]
    assert sum(map(_is_bad, damaged)) / 50_000 == pytest.approx(0.02, abs=0.003)
    assert all(p.count(b"\n") == 1 for p in damaged)
    assert not any(map(_is_bad, intact))


def test_limits_of_a_read() -> None:
    generator = source()
    assert not generator.bounded and generator.splits()[0].end is None
    reader = generator.open(generator.splits()[0], 0)
    size = len(reader.read(1, 1, 0).payloads[0].as_py())
    assert len(reader.read(10, 1 << 20, 0)) == 10
    assert len(reader.read(1000, 5 * size, 0)) == 5
    assert len(reader.read(100_000, 1 << 30, 0)) == 100_000


def test_a_rate_holds_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    generator = source(rate=2000, splits=2)
    reader = generator.open(generator.splits()[1], 7)
    batch = reader.read(1000, 1 << 20, 0.0)
    assert len(batch) == 0 and batch.caught_up and batch.next_position == 7
    now[0] += 0.05
    batch = reader.read(10, 1 << 20, 0.0)
    assert len(batch) == 10 and not batch.caught_up
    batch = reader.read(1000, 1 << 20, 0.0)
    assert abs(len(batch) - 40) <= 1 and batch.caught_up
    begin, total = now[0], 0
    while now[0] < begin + 2:
        total += len(reader.read(1000, 1 << 20, 0.1))
    assert total == pytest.approx(2000, rel=0.02)
    assert np.diff(reader.read(100, 1 << 20, 1.0).positions).tolist() in ([1] * n for n in range(100))


def test_no_events_are_done_at_once() -> None:
    generator = source(events=0)
    batch = generator.open(generator.splits()[0], 0).read(10, 1000, 0)
    assert generator.bounded and batch.done and len(batch) == 0


@pytest.mark.parametrize("wrong", [{"start": "1999-01-01T00:00:00Z"}, {"start": "2026-01-01"}, {"bad": 2}, {"rate": 0}, {"speed": 1}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        source(**wrong)
