import itertools
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.pipelines.services.flink_conf import CHECKPOINT_TIMEOUT_S
from streamgauge.transforms.sinks import rows_util
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.rows_util import (
    GIVE_UP_SECONDS,
    RefusedError,
    from_plain,
    latest,
    patience,
    plain_type,
    retrying,
    sift,
    to_plain,
)
from tests.transforms.sinks import cases


@settings(max_examples=80, deadline=None)
@given(cases.histories())
def test_latest_is_the_rule_applied_row_by_row(history: list) -> None:
    rows = [row for batch in history for row in batch]
    cases.same(cases.plain(latest(cases.to_table(rows), cases.ROWS)), cases.stored(history))


@pytest.mark.parametrize("values", [
    pa.array([1, None, -(2**31)], pa.int32()),
    pa.array([2**64 - 1, None, 0], pa.uint64()),
    pa.array([0.1, None, 3.4e38], pa.float32()),
    pa.array([True, None, False]),
    pa.array(["a", None, ""], pa.large_string()),
    pa.array(["a", None, "b"]).dictionary_encode(),
    pa.array([b"\xff", None, b""], pa.large_binary()),
    pa.array([0, None, -1], pa.int64()).cast(pa.timestamp("ns", "UTC")),
    pa.array([0, None, 2**40], pa.int64()).cast(pa.timestamp("ms")),
    pa.array([0, None, 2**62], pa.int64()).cast(pa.timestamp("us", "UTC")),
    pa.array([0, None, -800_000], pa.int32()).cast(pa.date32()),
    pa.array([0, None, 86_399], pa.int32()).cast(pa.time32("s")),
    pa.array([0, None, 86_399], pa.int64()).cast(pa.time64("us")),
    pa.array([0, None, -5], pa.int64()).cast(pa.duration("ms")),
    pa.array(["1.20", None, "-0.01"]).cast(pa.decimal128(10, 2)),
    pa.array([[1.5, None], None, []], pa.list_(pa.float64())),
    pa.array([{"a": "x", "b": [1]}, None, {"a": None, "b": None}], pa.struct([("a", pa.string()), ("b", pa.list_(pa.int64()))])),
], ids=lambda values: str(values.type))
def test_plain_columns_lose_nothing(values: pa.Array) -> None:
    chunks = [values] if pa.types.is_dictionary(values.type) else [values.slice(0, 1), values.slice(1)]
    plain = to_plain(pa.chunked_array(chunks))
    assert plain.type == plain_type(values.type)
    assert from_plain(plain, values.type).equals(values)
    empty = to_plain(pa.chunked_array([], values.type))
    assert len(from_plain(empty, values.type)) == 0


def test_iso_text_sorts_as_time_does() -> None:
    moments = pa.array([0, 999_999, 253_402_300_799_999_999, -62_135_596_800_000_000, cases.START]).cast(cases.UTC)
    text = to_plain(pa.chunked_array([moments])).to_pylist()
    assert sorted(text) == [t for _, t in sorted(zip(moments.cast(pa.int64()).to_pylist(), text, strict=True))]
    assert text[-1] == "2013-01-01T05:00:00.000000Z"


def test_a_sink_gives_up_well_before_a_checkpoint_does() -> None:
    assert rows_util.RETRY_SECONDS + rows_util.REQUEST_SECONDS == GIVE_UP_SECONDS <= CHECKPOINT_TIMEOUT_S * 2 / 3


def test_retries_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.1)
    calls = []

    def fail() -> None:
        calls.append(1)
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        retrying(lambda error: isinstance(error, OSError))(fail)
    assert len(calls) > 1
    calls.clear()
    with pytest.raises(OSError):
        retrying(lambda error: isinstance(error, KeyError))(fail)
    assert len(calls) == 1


def test_what_is_tried_together_gives_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(rows_util.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 100)
    tries: list[int] = []

    def fail(which: int) -> None:
        tries.append(which)
        next_second = 40 if len(tries) == 1 else 70
        for _ in range(next_second):
            next(clock)
        raise OSError("down")

    with patience() as until:
        for which in (1, 2):
            with patience() as inner, pytest.raises(OSError):
                assert inner is until
                retrying(lambda error: isinstance(error, OSError)).copy(sleep=lambda seconds: None)(fail, which)
        assert until.left() == 0
    assert tries == [1, 1, 2], "the second has no time of its own, but one try"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.sampled_from(["nothing", "the first", "any"]), st.integers(1, 50), st.randoms())
def test_sifting_stores_every_good_row_once_and_finds_every_bad_one(bad: list[bool], told: str, small: int, random: Random) -> None:
    stored: list[int] = []

    def store(rows: pa.Table) -> None:
        found = rows["bad"].to_pylist()
        if any(found):
            at = {"nothing": None, "the first": found.index(True), "any": random.randrange(len(found))}[told]
            raise RefusedError("bad", "rotten", at)
        stored.extend(rows["n"].to_pylist())

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(rows_util, "_SMALL_ROWS", small)
        rejected = sift(pa.table({"n": pa.array(range(len(bad)), pa.int64()), "bad": pa.array(bad, pa.bool_())}), store)
    assert [part.rows["n"].to_pylist() for part in rejected] == [[n] for n, is_bad in enumerate(bad) if is_bad]
    assert stored == [n for n, is_bad in enumerate(bad) if not is_bad]
    assert {(part.reason, part.error_type) for part in rejected} <= {("bad", "rotten")}


def test_a_table_that_refuses_everything_is_no_matter_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.0)

    def store(rows: pa.Table) -> None:
        raise RefusedError("wrong type")

    with pytest.raises(SinkError, match=r"could not be told apart \(tried for .* s\); one of the reasons: wrong type"):
        sift(pa.table({"n": [1, 2]}), store)
