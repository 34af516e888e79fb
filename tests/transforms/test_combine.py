"""Windows of several slices: what a store holds in the end is what plain Python says of the events that were in time."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms import merge
from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.combine import CombineDoFn, Slices
from streamgauge.transforms.merge import COMPACT_BEYOND, DUE_ROWS, Merged
from streamgauge.transforms.partials import Partials
from streamgauge.transforms.windows import WINDOWS
from tests.examples import examples
from tests.transforms.streamed import FIELDS, MS, Event, Step, batch_of, folded, micros, streamed

S = 1000 * MS
WINDOWS_TRIED: list[dict[str, Any]] = [
    {"sliding": {"size": "3s", "every": "1s"}}, {"sliding": {"size": "5s", "every": "2s"}}, {"sliding": {"size": "2s", "every": "2s", "offset": "500ms"}},
    {"cumulative": {"size": "4s", "every": "1s"}}, {"cumulative": {"size": "6s", "every": "3s", "offset": "1s"}}, {"tumbling": "2s"},
]  # fmt: skip

EVENTS = st.lists(st.tuples(st.integers(0, 12_000).map(lambda ms: ms * MS), st.none() | st.sampled_from("ab"), st.integers(-9, 9)), min_size=1, max_size=8)
STEPS = st.lists(EVENTS | st.integers(0, 14_000) | st.just("clock"), min_size=1, max_size=9)


def windows_with(window: dict[str, Any], time: int) -> list[tuple[int, int]]:
    """Bounds of the windows with this time, from the definition."""
    ((kind, given),) = window.items()
    plugin = WINDOWS.load(kind)
    options = plugin.Options(**(given if isinstance(given, dict) else {"size": given}))
    if kind == "cumulative":
        start = time - (time - options.offset) % options.size
        return [(start, end) for end in range(start + options.every, start + options.size + 1, options.every) if end > time]
    every = options.every if kind == "sliding" else options.size
    last = time - (time - options.offset) % every
    return sorted((start, start + options.size) for start in range(last, time - options.size, -every))


def rising(steps: list[Any]) -> list[Step]:
    """The watermark never goes back; milliseconds to microseconds."""
    made: list[Step] = []
    newest = -(10**9)
    for step in steps:
        if isinstance(step, int):
            if step * MS - MS > newest:
                newest = step * MS - MS
                made.append(newest)
        else:
            made.append(step)
    return made


@settings(deadline=None, max_examples=examples(15))
@given(
    STEPS, st.sampled_from(WINDOWS_TRIED), st.sampled_from([0, 1500 * MS, 60 * S]), st.sampled_from(["final", {"every": "500ms"}, "on_change"]),
    st.sampled_from([(1, 0), (3, 1), (DUE_ROWS, COMPACT_BEYOND)]),
)  # fmt: skip
def test_what_a_store_holds_in_the_end(steps: list[Any], window: dict[str, Any], lateness: int, emit: Any, together: tuple[int, int]) -> None:
    """Whatever is merged together at a bundle's end, and what at once."""
    stream = rising(steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "DUE_ROWS", together[0])
        patch.setattr(merge, "COMPACT_BEYOND", together[1])
        rows, late = streamed(stream, window=window, lateness=lateness, emit=emit)
    watermark = -(10**15)
    late_then: list[Event] = []
    wanted: dict[tuple[int, int, str | None], list[int]] = defaultdict(list)
    unsure = set()
    for step in stream:
        if isinstance(step, int):
            watermark = step
        elif not isinstance(step, str):
            for time, key, value in step:
                windows = windows_with(window, time)
                if windows[-1][1] + lateness <= watermark + MS:
                    late_then.append((time, key, value))
                    continue
                for start, end in windows:
                    wanted[start, end, key].append(value)
                    if end + lateness <= watermark + MS:
                        unsure.add((start, end))
    assert sorted((micros(row["event_time"]), row["key"] or "", row["value"]) for row in late) == sorted((time, key or "", value) for time, key, value in late_then)
    stored = folded(rows, "window_start", "window_end", "key")
    found = {(micros(start), micros(end), key): (row["total"], row["events"]) for (start, end, key), row in stored.items()}
    assert all(row["final"] and row["revision"] == row["events"] for row in stored.values())
    sure = {name: (sum(values), len(values)) for name, values in wanted.items() if name[:2] not in unsure}
    assert {name: values for name, values in found.items() if name[:2] not in unsure} == sure


@pytest.mark.parametrize("emit", [{"every": "500ms"}, "on_change"])
def test_early_results_are_of_the_window_that_ends_next(emit: Any) -> None:
    steps: list[Step] = [[(100 * MS, "a", 1)], "clock", [(200 * MS, "a", 2), (1100 * MS, "b", 4)], "clock"]
    rows, _ = streamed(steps, window={"sliding": {"size": "3s", "every": "1s"}}, emit=emit)
    early = [(micros(row["window_end"]) // S, row["key"], row["total"]) for row in rows if not row["final"]]
    assert (1, "a", 1) in early
    assert early[-1] in {(2, "b", 4), (2, "a", 3)}
    assert {end for end, _, _ in early} <= {1, 2}


class Bag(list[bytes]):
    def read(self) -> list[bytes]:
        return list(self)

    add = list.append


class Timers(dict[str, int]):
    def set(self, when: Timestamp, dynamic_timer_tag: str = "") -> None:
        self[dynamic_timer_tag] = when.micros


@pytest.mark.parametrize("lateness", [0, 3 * S])
def test_what_is_kept_does_not_grow_and_is_enough(lateness: int) -> None:
    """As on Flink: slices leave the step before in order, then timers fire. Each slice is told twice, early and when it has ended."""
    options = AggregateOptions(metric="m", window={"sliding": {"size": "5s", "every": "1s"}}, by=["key"], aggregates={"total": {"sum": "value"}}, shards=1)
    metric = build_metric(options, FIELDS)
    partials, slices = Partials(metric), Slices()
    dofn = CombineDoFn(metric, options.window.create(), lateness, 100 * MS)
    dofn.setup()
    bag, end, emit = Bag(), Timers(), Timers()
    totals, sizes = {}, []
    for second in range(300):
        rows = partials.reduce(batch_of([(second * S, "a", 1)]), partials.group(batch_of([(second * S, "a", 1)])))
        for final in (False, True):
            dofn.start_bundle()
            for _, element in slices.of(partials, [Merged(b"0.0", rows, rows, None, second * S, (second + 1) * S, final, None)]):
                dofn.process(element, bag, end, emit)
            if not final:
                list(dofn.periodic(b"0.0", bag, Timers()))
        dofn.start_bundle()
        for tag in sorted((tag for tag, when in end.items() if when < (second + 1) * S), key=int):
            for batch in dofn.passed(b"0.0", Timestamp(micros=end.pop(tag)), bag, end):
                for row in batch.to_pylist():
                    assert (micros(row["window_start"]) // S) not in totals, "made once"
                    totals[micros(row["window_start"]) // S] = row["total"]
        sizes.append(len(bag))
    assert totals == {start: min(5, start + 5) for start in range(-4, 296)}
    assert max(sizes) <= 2 * max(16, 5 + lateness // S) + 3 and max(sizes[200:]) <= max(sizes[:100])
