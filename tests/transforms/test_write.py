from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.write import newest

SPEC = RowSpec("results", key=("k", "w"), time="w", revision="revision", final="final")
ROW = st.fixed_dictionaries({
    "k": st.none() | st.sampled_from(["a", "b", ""]), "w": st.integers(0, 2), "revision": st.integers(0, 3), "final": st.booleans(), "v": st.integers(),
})
SCHEMA = SPEC.attach(pa.schema([("k", pa.string()), ("w", pa.int64()), ("revision", pa.int64()), ("final", pa.bool_()), ("v", pa.decimal128(38))]))


@given(st.lists(ROW.map(lambda row: {**row, "v": row["v"] % 10**9}), max_size=30))
def test_one_row_a_key_the_newest(rows: list[dict[str, Any]]) -> None:
    wanted: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        stored = wanted.get((row["k"], row["w"]))
        if stored is None or (row["revision"], row["final"]) >= (stored["revision"], stored["final"]):
            wanted[row["k"], row["w"]] = row
    found = newest(pa.Table.from_pylist(rows, schema=SCHEMA), SPEC)
    assert RowSpec.of(found.schema) == SPEC
    assert {(row["k"], row["w"]): row for row in found.to_pylist()} == wanted
    assert found.num_rows == len(wanted)
