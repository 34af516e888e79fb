import pyarrow as pa
import pytest
from hypothesis import given, settings

from streamgauge.transforms.sinks.rows_util import from_plain, latest, plain_type, retrying, to_plain
from tests.transforms.sinks import cases


@settings(max_examples=200, deadline=None)
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


def test_retries_end() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        retrying(lambda error: isinstance(error, OSError), seconds=0.1)(fail)
    assert len(calls) > 1
    calls.clear()
    with pytest.raises(OSError):
        retrying(lambda error: isinstance(error, KeyError))(fail)
    assert len(calls) == 1
