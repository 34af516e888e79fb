import itertools
from dataclasses import replace
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.pipelines.services.flink_conf import CHECKPOINT_TIMEOUT_S
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import rows_util
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.rows_util import (
    GIVE_UP_SECONDS,
    RefusedError,
    current,
    difference,
    filled,
    lacking,
    latest,
    patience,
    retrying,
    sift,
)
from tests.examples import examples
from tests.transforms.sinks import cases


@settings(max_examples=examples(50), deadline=None)
@given(cases.histories())
def test_latest_is_the_rule_applied_row_by_row(history: list) -> None:
    table = cases.to_table([row for batch in history for row in batch])
    spec = RowSpec.of(table.schema)
    found = latest(table, spec)
    assert RowSpec.of(found.schema) == spec
    cases.same(cases.plain(current(found, spec)), cases.stored(history))


def test_columns_of_later_versions() -> None:
    earlier = cases.to_table([cases.result()], cases.EARLIER)
    assert [field.name for field in lacking(cases.EARLIER.names, cases.SESSIONS)] == ["watermark", "withdrawn"]
    assert difference(cases.EARLIER, cases.SESSIONS) is None
    assert cases.plain(filled(earlier, cases.SESSIONS)) == [cases.session()]
    assert filled(earlier, cases.SESSIONS).schema.equals(cases.SESSIONS, check_metadata=True)
    with pytest.raises(ValueError, match="not matching"):
        filled(cases.to_table([cases.session()]), cases.SCHEMA)
    for old, new in [(cases.SESSIONS, cases.SCHEMA), (cases.SCHEMA, cases.EARLIER), (cases.EARLIER, cases.SCHEMA.remove(8))]:
        assert "it has the columns" in (difference(old, new) or "") or "it holds" in (difference(old, new) or "")
    disjoint = replace(cases.SESSION_ROWS, until="window_end").attach(cases.SESSIONS)
    assert difference(cases.EARLIER, disjoint) is None
    assert "windows of another kind" in (difference(cases.SESSIONS, disjoint) or "") and "windows of another kind" in (difference(disjoint, cases.SESSIONS) or "")
    late = RowSpec("late", key=("user",), time="watermark")
    with_time = late.attach(pa.schema([("user", pa.string()), ("watermark", cases.UTC)]))
    assert lacking(["user"], with_time) == [], "an event's own field"


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


@settings(max_examples=examples(80), deadline=None)
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
