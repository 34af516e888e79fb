"""Splits that are looked into together: each gives what it would give alone, in whatever order their calls come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms import joint_reads
from streamgauge.transforms import readers as readers_module
from streamgauge.transforms.batch import EVENT_TIME
from streamgauge.transforms.event_time import EventTime, TimeOptions
from streamgauge.transforms.formats.csv import Csv
from streamgauge.transforms.formats.json import Json
from streamgauge.transforms.joint_reads import Batch, JointReads, Limits
from streamgauge.transforms.readers import OpenReaders
from streamgauge.transforms.sources.base import RawBatch, SourceError, Split
from tests.examples import examples
from tests.memory import event

SCHEMA = {"t": "int64", "v": "string"}
FORMAT = Json(Json.Options(schema=SCHEMA))
FORMATS = [FORMAT, Csv(Csv.Options(schema=SCHEMA, header=True))]
LIMITS = Limits(records=8, size=1 << 20, wait=0.0)


class Grown:
    """A source whose splits have a first part of their payloads by now. A payload ``b"!"`` is one that the connector itself cannot deliver."""

    name, bounded = "grown", False

    def __init__(self, payloads: dict[str, list[bytes | None]]) -> None:
        self.payloads = payloads
        self.there = dict.fromkeys(payloads, 0)
        self.opened: list[str] = []
        self.asked: list[tuple[str, int]] = []
        self.broken: str | None = None

    def splits(self) -> list[Split]:
        return [Split(name, 0) for name in self.payloads]

    def open(self, split: Split, position: int) -> GrownReader:
        self.opened.append(split.id)
        return GrownReader(self, split.id, position)


class GrownReader:
    def __init__(self, source: Grown, name: str, position: int) -> None:
        self._source, self._name, self._position = source, name, position

    def read(self, max_records: int, max_bytes: int, timeout: float) -> RawBatch:
        source = self._source
        source.asked.append((self._name, max_records))
        if source.broken == self._name:
            raise SourceError(f"{self._name} is gone")
        begin, self._position = self._position, min(self._position + max_records, source.there[self._name])
        found = list(enumerate(source.payloads[self._name]))[begin : self._position]
        given = [(place, payload) for place, payload in found if payload != b"!"]
        errors = tuple((place, "corrupt", "damaged", None) for place, payload in found if payload == b"!")
        positions = np.array([place for place, _ in given], np.int64)
        # One kind of payload is text that stands in lines, as the Kafka connector has it for batches without a line break.
        lines = all(payload is not None and b"\n" not in payload for _, payload in given)
        values = [payload + b"\n" if lines and payload is not None else payload for _, payload in given]
        return RawBatch(
            pa.array(values, pa.binary()), positions, self._position, timestamps=positions * 1_000_000,
            caught_up=self._position == source.there[self._name], newline_terminated=lines, errors=errors,
        )  # fmt: skip

    def close(self) -> None:
        pass


def reads(source: Grown, times: TimeOptions | None = None, format_: Any = FORMAT, *, jointly: bool = True) -> Callable[[str], Batch]:
    """One call for a split."""
    event_time = EventTime(times or TimeOptions(field="t", unit="ms"), format_.schema)
    readers = OpenReaders(source)
    joint = JointReads(readers, lambda raw: event_time.apply(raw, format_.parse(raw)), event_time.schema, jointly=jointly)
    positions = dict.fromkeys(source.payloads, 0)

    def call(name: str) -> Batch:
        reader = readers.take(Split(name, 0), positions[name])
        batch = joint.next(reader, LIMITS)
        positions[name] = batch.raw.next_position
        readers.put_back(Split(name, 0), reader)
        return batch

    return call


def told(batch: Batch) -> list[tuple[Any, ...]]:
    """All that a batch says of its split, by position."""
    raw, parsed = batch.raw, batch.parsed
    rows = range(len(raw)) if parsed.rows is None else parsed.rows.tolist()
    events = [(int(raw.positions[row]), "event", values.pop(EVENT_TIME), values) for row, values in zip(rows, parsed.events.to_pylist(), strict=True)]
    rejects = parsed.rejects
    bad = [(int(raw.positions[index]), *why) for index, *why in zip(rejects.indices, rejects.error_types, rejects.messages, strict=True)]
    return sorted([*events, *bad, *(error[:3] for error in raw.errors)], key=lambda entry: entry[0])


PAYLOADS = st.one_of(
    st.integers(0, 10**6).map(lambda t: event(t=t, v=f"wörter {t}")), st.integers(0, 9).map(lambda t: event(t=t, v="a\nb")),
    st.sampled_from([b"{oops", None, b"!", b'{"v": "no time"}', b"", b'{"t": 1,\n"v": "x"}', event(t=2**62, v="far away"), b"t,v", b"v,t", b"5,x", b"5,x,y"]),
)  # fmt: skip


@settings(deadline=None, max_examples=examples(150))
@given(
    st.dictionaries(st.sampled_from("abcd"), st.lists(PAYLOADS, max_size=25), min_size=1),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12), st.booleans()), max_size=25),
    st.sampled_from([TimeOptions(field="t", unit="ms"), TimeOptions()]),
    st.sampled_from(FORMATS),
)
def test_each_split_gives_what_it_gives_alone(
    payloads: dict[str, list[bytes | None]], steps: list[tuple[str, int, bool]], times: TimeOptions, format_: Any
) -> None:
    """A step: so many payloads more are in a split, and perhaps a call is made for it. In the end all are called until they have nothing more."""
    source = Grown(payloads)
    call, found = reads(source, times, format_), {name: [] for name in payloads}

    def one(name: str) -> bool:
        batch = call(name)
        found[name] += told(batch)
        return batch.raw.next_position < source.there[name]

    for name, grown, called in steps:
        if name in payloads:
            source.there[name] = min(source.there[name] + grown, len(payloads[name]))
            if called:
                one(name)
    source.there = {name: len(some) for name, some in payloads.items()}
    for name in payloads:
        while one(name):
            pass
    alone = Grown(payloads)
    alone.there = source.there
    call_alone, expected = reads(alone, times, format_, jointly=False), {name: [] for name in payloads}
    for name, some in payloads.items():
        for _ in range(0, len(some), LIMITS.records):
            expected[name] += told(call_alone(name))
    assert found == expected
    assert len(source.opened) == len(set(source.opened)), "no reader was closed over what it had read ahead"


@pytest.fixture(autouse=True)
def _a_moment_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_reads, "FRESH_SECONDS", 60.0)


def good(count: int) -> list[bytes | None]:
    return [event(t=place, v=str(place)) for place in range(count)]


def opened(source: Grown, **options: Any) -> Callable[[str], Batch]:
    """After calls for each split that found nothing and left nothing."""
    call = reads(source, **options)
    for name in [*source.payloads, *list(source.payloads)[:-1]]:
        call(name)
    source.asked.clear()
    return call


def test_others_are_looked_into_while_there_is_room() -> None:
    """Those first that have waited longest."""
    source = Grown({name: good(20) for name in "abc"})
    call = opened(source)
    source.there = {"a": 1, "b": 20, "c": 4}
    assert call("a").raw.next_position == 1
    assert source.asked == [("a", 8), ("c", 7)], "five are enough to be parsed together"
    assert [entry[0] for entry in told(call("c"))] == [0, 1, 2, 3]
    assert [name for name, _ in source.asked] == ["a", "c"], "what was read ahead is not read again"
    full = call("b")
    assert (full.raw.next_position, full.more) == (8, True)


def test_each_split_has_its_header() -> None:
    source = Grown({name: [b"t,v", b"%d,x" % place] for place, name in enumerate("ab")})
    call = opened(source, format_=FORMATS[1])
    source.there = {"a": 2, "b": 2}
    assert [(name, [entry[:2] for entry in told(call(name))]) for name in "ab"] == [("a", [(1, "event")]), ("b", [(1, "event")])]
    assert source.asked == [("a", 8), ("b", 6)]


def test_a_share_that_was_cut_says_that_there_is_more() -> None:
    source = Grown({name: good(20) for name in "ab"})
    call = opened(source)
    source.there = {"a": 3, "b": 20}
    assert not call("a").more
    share = call("b")
    assert (share.raw.next_position, share.more) == (5, True)


def test_that_there_was_nothing_holds_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Grown({name: good(20) for name in "ab"})
    call = opened(source)
    call("a")
    source.there["b"] = 2
    assert call("b").raw.next_position == 0
    assert call("b").raw.next_position == 2
    call("a")
    monkeypatch.setattr(joint_reads, "FRESH_SECONDS", 0.0)
    source.there["b"] = 3
    assert call("b").raw.next_position == 3


def test_after_an_error_nothing_is_left_out() -> None:
    """What the others had read by then is in no batch: they are opened again."""
    source = Grown({name: good(20) for name in "abc"})
    call = opened(source)
    source.there, source.broken = dict.fromkeys("abc", 2), "c"
    with pytest.raises(SourceError, match="c is gone"):
        call("a")
    source.broken = None
    assert {name: [entry[0] for entry in told(call(name))] for name in "abc"} == {name: [0, 1] for name in "abc"}
    assert source.opened == ["a", "b", "c", "a", "b", "c"]


def test_splits_with_an_end_are_read_one_by_one() -> None:
    source = Grown({name: good(5) for name in "ab"})
    call = opened(source, jointly=False)
    source.there = {"a": 5, "b": 5}
    assert call("a").raw.next_position == 5
    assert source.asked == [("a", 8)]


def test_bundles_are_told_apart() -> None:
    """Splits whose calls come in different bundles are not together; one that was not read for long does not count."""
    source = Grown({name: [] for name in "ab"})
    readers = OpenReaders(source)
    a, b = Split("a", 0), Split("b", 0)

    def bundle(*splits: Split) -> bool:
        together = readers.begin_bundle()
        for split in splits:
            readers.put_back(split, readers.take(split, 0))
        return together

    assert [bundle(a, b), bundle(a, b), bundle(a), bundle(b), bundle(a), bundle(a, b), bundle(a, b)] == [True, True, True, False, False, False, True]
    bundle(a)
    readers._free["b"].used -= 10
    assert bundle(a)


def test_splits_that_never_meet_rest_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some runners give each a bundle of its own."""
    monkeypatch.setattr(readers_module, "_TRIES_SECONDS", 3600.0)
    readers = OpenReaders(Grown({name: [] for name in "ab"}))
    rested = []
    for name in "ab" * 8:
        rested.append(readers.begin_bundle())
        readers.put_back(Split(name, 0), readers.take(Split(name, 0), 0))
    assert rested == [True] * 2 + [False] * 8 + [True] * 6
