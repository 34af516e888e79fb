"""The verdict must see every kind of mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.verdict import Comparison, Verdict, compare, expected_rows, stored_letters
from tests.faults.workload import Workload

STREAM = Workload.of(11, 5_000)
ROWS = expected_rows(STREAM)
LETTERS = STREAM.expected_letters()
ROW_KEY, LETTER_KEY = ["window_start", "key"], ["split", "position"]


def altered(table: pa.Table, row: int, **values: Any) -> pa.Table:
    rows = table.to_pylist()
    rows[row] |= values
    return pa.Table.from_pylist(rows, schema=table.schema)


def without(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def results(found: pa.Table) -> Comparison:
    return compare("results", ROWS, found, ROW_KEY)


def test_the_right_rows_are_right_in_any_order() -> None:
    comparison = results(ROWS.take(pa.array(range(len(ROWS) - 1, -1, -1))))
    assert comparison.right, comparison
    assert comparison.expected == comparison.found == len(ROWS) > 1_000
    assert comparison.examples == []


@pytest.mark.parametrize("row", [0, 17])
def test_a_missing_row_is_seen(row: int) -> None:
    comparison = results(without(ROWS, row))
    assert (comparison.missing, comparison.unexpected, comparison.repeated, comparison.right) == (1, 0, 0, False)
    assert len(comparison.examples) == 1 and comparison.examples[0].endswith("found nothing")


def test_a_missing_row_whose_key_is_null_is_seen() -> None:
    row = ROWS["key"].to_pylist().index(None)
    assert results(without(ROWS, row)).missing == 1


def test_a_repeated_row_is_seen() -> None:
    comparison = results(pa.concat_tables([ROWS, ROWS.slice(3, 1)]))
    assert (comparison.missing, comparison.unexpected, comparison.repeated, comparison.right) == (0, 0, 1, False)


def test_an_unexpected_row_is_seen() -> None:
    comparison = results(pa.concat_tables([ROWS, altered(ROWS.slice(0, 1), 0, key="key-999")]))
    assert (comparison.missing, comparison.unexpected, comparison.repeated, comparison.right) == (0, 1, 0, False)
    assert "expected nothing" in comparison.examples[0]


@pytest.mark.parametrize("column", [name for name in ROWS.column_names if name not in ROW_KEY])
def test_a_wrong_value_is_seen(column: str) -> None:
    old = ROWS[column][5].as_py()
    for new in (None, not old if column == "final" else old + 1):
        comparison = results(altered(ROWS, 5, **{column: new}))
        assert {name: count for name, count in comparison.differing.items() if count} == {column: 1}
        assert (comparison.missing, comparison.unexpected, comparison.repeated, comparison.right) == (0, 0, 0, False)


def test_one_unit_beyond_the_precision_of_a_double_is_seen() -> None:
    totals = ROWS["total"].to_pylist()
    row = next(index for index, total in enumerate(totals) if total is not None and abs(total) > 2**54)
    wrong = totals[row] + 1
    assert float(wrong) == float(totals[row])
    assert results(altered(ROWS, row, total=wrong)).differing["total"] == 1


def test_nothing_stored_is_everything_missing() -> None:
    assert results(ROWS.slice(0, 0)).missing == len(ROWS)


def test_dead_letters_are_judged_by_split_and_position(tmp_path: Path) -> None:
    assert len(stored_letters(tmp_path)) == 0
    pq.write_table(LETTERS.slice(0, 2), tmp_path / "a.parquet")
    pq.write_table(LETTERS.slice(2), tmp_path / "b.parquet")
    assert compare("dead letters", LETTERS, stored_letters(tmp_path), LETTER_KEY).right
    pq.write_table(LETTERS.slice(0, 1), tmp_path / "c.parquet")
    assert compare("dead letters", LETTERS, stored_letters(tmp_path), LETTER_KEY).repeated == 1
    for wrong in ({"payload": b"{}"}, {"error_type": "other"}):
        assert not compare("dead letters", LETTERS, altered(LETTERS, 1, **wrong), LETTER_KEY).right
    assert compare("dead letters", LETTERS, altered(LETTERS, 1, position=10**6), LETTER_KEY).missing == 1


def test_one_wrong_comparison_fails() -> None:
    right, wrong = results(ROWS), results(without(ROWS, 0))
    assert Verdict([right, right]).word == "PASS"
    assert Verdict([right, wrong]).word == "FAIL"
    assert "found nothing" in str(Verdict([right, wrong]))
