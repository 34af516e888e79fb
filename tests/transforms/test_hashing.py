from __future__ import annotations

import datetime
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.transforms.hashing import MAX_PARALLELISM, flink_key_group, hash_rows, spread_key

TEXT = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(st.tuples(TEXT, st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.booleans()), max_size=50))
def test_a_row_hashes_alike_wherever_it_stands(rows: list[tuple[str | None, int | None, bool | None]]) -> None:
    def hashes(some: list[tuple[str | None, int | None, bool | None]]) -> list[int]:
        columns = list(zip(*some, strict=True)) if some else [(), (), ()]
        kinds = (pa.string(), pa.int64(), pa.bool_())
        return hash_rows([pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)], len(some)).tolist()

    together = hashes(rows)
    assert together == [hashes([row])[0] for row in rows]
    by_hash = dict(zip(together, rows, strict=True))
    assert len(by_hash) == len(set(rows)), "different rows of a small set collided"


def test_hashes_are_the_same_in_another_process_and_for_ever() -> None:
    columns = [pa.array(["JFK", "", None, "Zürich"]), pa.array([1, -1, None, 2**62])]
    code = "import pyarrow as pa; from streamgauge.transforms.hashing import hash_rows; print(hash_rows([pa.array(['JFK', '', None, 'Zürich']), pa.array([1, -1, None, 2**62])], 4).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(other) == hash_rows(columns, 4).tolist()
    assert hash_rows(columns, 4).tolist() == GOLDEN


GOLDEN = [12344384387814874307, 13029008266876403067, 5920171677303963490, 2840738471811771049]


@given(st.lists(st.text(max_size=40)))
def test_large_strings_hash_alike(texts: list[str]) -> None:
    assert hash_rows([pa.array(texts, pa.string())], len(texts)).tolist() == hash_rows([pa.array(texts, pa.large_string())], len(texts)).tolist()


def test_shards_are_even() -> None:
    keys = pa.array([f"host-{i}" for i in range(10_000)])
    counts = np.bincount((hash_rows([keys], len(keys)) % np.uint64(8)).astype(int))
    assert counts.min() > 1_100
    assert counts.max() < 1_400


@pytest.mark.parametrize("values", [pa.array([datetime.date(2013, 1, 1), None]), pa.array([0, 1], pa.uint64()), pa.array(["a", "b"]).dictionary_encode()])
def test_every_type_of_dimension_hashes(values: pa.Array) -> None:
    assert len(set(hash_rows([values], 2).tolist())) == 2


@pytest.mark.parametrize("members", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("subtasks", [1, 2, 4])
def test_keys_spread_evenly_over_subtasks(members: int, subtasks: int) -> None:
    keys = [spread_key(i, lambda salt, i=i: b"%d/%d" % (i, salt)) for i in range(members)]
    loads = np.bincount([flink_key_group(key) * subtasks // MAX_PARALLELISM for key in keys], minlength=subtasks)
    assert loads.max() - loads.min() <= 1
