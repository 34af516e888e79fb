"""A limit on keys: every row is exact, whatever the order; the others share a row, or are told as dead letters."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.hashing import hash_rows
from tests.examples import examples
from tests.transforms.streamed import FIELDS, MS, Event, Step, folded, micros, streamed

S = 1000 * MS
KEYS = ["a", "b", "c", "d", "e", "f", None]
EVENTS = st.lists(st.tuples(st.integers(0, 4_000).map(lambda ms: ms * MS), st.sampled_from(KEYS), st.integers(-9, 9)), min_size=1, max_size=12)
LIMIT = {"limit": 4}
SHARDS = 2


def kept(keys: set[str | None]) -> set[str | None]:
    """Keys with rows: in each shard those of the smallest hashes."""
    names = sorted(keys, key=str)
    hashes = dict(zip(names, hash_rows([pa.array(names, pa.string())], len(names)).tolist(), strict=True))
    chosen: set[str | None] = set()
    for shard in range(SHARDS):
        there = sorted((name for name in names if hashes[name] % SHARDS == shard), key=hashes.__getitem__)
        chosen.update(there[: LIMIT["limit"] // SHARDS])
    return chosen


def expected(events: list[Event], size: int, every: int) -> tuple[dict[tuple[int, str | None], tuple[int, int]], Counter[int]]:
    """(sum and number of events of each window and key with a row, number of events of the others by window)."""
    totals: dict[tuple[int, str | None], tuple[int, int]] = {}
    beyond: Counter[int] = Counter()
    starts = {start for time, _, _ in events for start in range(time - time % every, time - size, -every)}
    for start in starts:
        inside = [(key, value) for time, key, value in events if start <= time < start + size]
        chosen = kept({key for key, _ in inside})
        for key in chosen & {key for key, _ in inside}:
            values = [value for name, value in inside if name == key]
            totals[start, key] = (sum(values), len(values))
        beyond[start] = sum(key not in chosen for key, _ in inside)
    return totals, +beyond


@example([[(0, key, 1) for key in "abc"]] * 2 + [[(0, key, 1) for key in "def"]], ("tumbling", 1), False, True)
@example([[(0, key, 1) for key in "abc"] * 6] * 2 + [[(0, key, 1) for key in "def"]], ("tumbling", 1), False, True)
@settings(deadline=None, max_examples=examples(12))
@given(
    st.lists(EVENTS | st.just("clock"), min_size=1, max_size=5), st.sampled_from([("tumbling", 1), ("tumbling", 4), ("sliding", 3)]), st.booleans(), st.booleans()
)
def test_what_a_store_holds_in_the_end(steps: list[Any], window: tuple[str, int], early: bool, late: bool) -> None:
    kind, size = window
    options = {"tumbling": f"{size}s"} if kind == "tumbling" else {"sliding": {"size": f"{size}s", "every": "1s"}}
    emit: Any = {"every": "100ms"} if early and kind == "tumbling" else "final"
    stream: list[Step] = [*steps[:2], *([2 * S] if late else []), *steps[2:]]
    if kind == "sliding":
        # There no lateness is allowed, and nothing comes late.
        stream = [step for step in stream if not isinstance(step, int)]
    rows, refused = streamed(stream, window=options, emit=emit, keys=LIMIT, shards=SHARDS, **({"lateness": "1h"} if kind == "tumbling" else {}))
    assert not refused
    totals, beyond = expected([event for step in stream if isinstance(step, list) for event in step], size * S, (size if kind == "tumbling" else 1) * S)
    stored = folded(rows, "window_start", "key", "other")
    found = {(micros(start), key): (row["total"], row["events"]) for (start, key, other), row in stored.items() if other is None}
    assert found == totals
    others: Counter[int] = Counter()
    for (start, key, other), row in stored.items():
        if other is not None:
            assert key is None
            others[micros(start)] += row["events"]
    assert others == beyond
    gone = [row for row in rows if row.get("withdrawn")]
    assert all(row["events"] == 0 and row["total"] is None for row in gone)


def test_the_others_as_dead_letters() -> None:
    events = [(i * MS, f"k{i}", 1) for i in range(50)]
    letters: list[dict[str, Any]] = []
    rows, _ = streamed([events[:30], events[30:]], window={"tumbling": "1s"}, keys={"limit": 10, "beyond": "dead_letters"}, shards=SHARDS,
                       error_handling={"output": "refused"}, also={"refused": letters})  # fmt: skip
    assert len(rows) == 10 and {row["events"] for row in rows} == {1}
    assert "other" not in rows[0]
    last = {letter["position"]: letter for letter in letters}
    assert sorted(last) == [0, 1]
    payloads = [json.loads(letter["payload"]) for letter in last.values()]
    assert sum(payload["events"] for payload in payloads) == sum(payload["total"] for payload in payloads) == 40
    assert {(letter["stage"], letter["source"], letter["error_type"]) for letter in letters} == {("aggregate", "m", "too_many_keys")}
    assert json.loads(last[0]["split"]) == ["1970-01-01T00:00:00+00:00", "1970-01-01T00:00:01+00:00"]
    assert last[0]["message"] == f"{payloads[0]['events'] if payloads[0] else 0} events are of keys beyond the limit of 5 in their part of the keys, and in no row"


def test_memory_is_bounded() -> None:
    """However many keys come, a partial has no more rows than the limit and one."""
    made = build_metric(AggregateOptions(metric="m", window={"tumbling": "1s"}, by=["key"], aggregates={"n": "count"}, keys={"limit": 100}, shards=4), FIELDS)
    assert made.limit == 25


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"window": {"session": "1m"}}, "sessions have no limit on keys"), ({"window": {"sliding": {"size": "2s", "every": "1s"}}, "emit": "on_change"}, "needs `emit: final` and no `lateness`"),
    ({"window": {"sliding": {"size": "2s", "every": "1s"}}, "lateness": "1s"}, "needs `emit: final` and no `lateness`"),
    ({"keys": {"limit": 0}}, "greater than or equal to 1"), ({"error_handling": {"output": "x"}}, "has no dead letters without"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"metric": "m", "window": {"tumbling": "1s"}, "by": ["key"], "aggregates": {"n": "count"}, "keys": {"limit": 3}}
    with pytest.raises(ValueError, match=message):
        AggregateOptions(**{**good, **options})
