"""In which windows an event is, in SQL and plain Python: by the definition of each kind, without slices, partials or our clocks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from streamgauge.transforms.config import MICROSECONDS, Choice
from streamgauge.transforms.windows.whole import END

DAY = MICROSECONDS["d"]
_EPOCH = datetime(1970, 1, 1)


def place(connection: Any, events: str, window: Choice, keys: list[str]) -> str:
    """SQL of the table ``events`` (with ``time``, microseconds) with ``window_start`` and ``window_end``: a row for each window that an event is in.

    Args:
        keys: columns of ``events``; sessions are those of a key.
    """
    return _KINDS[window.name](connection, events, window.options, keys)


def settled(window: Choice, lateness: int) -> int:
    """So long after its end (microseconds) nothing changes a window any more."""
    options = window.options
    # Whether a session is a part of a longer one is known only when that would be too long as well.
    return lateness + (options.gap + options.max if window.name == "session" and options.max is not None else 0)


def _floor(time: str, size: int, offset: int) -> str:
    return f"({time} - ((({time} - {offset}) % {size}) + {size}) % {size})"


def _tumbling(connection: Any, events: str, options: Any, keys: list[str]) -> str:
    if options.timezone is not None:
        return _days(connection, events, options, options.size, options.size)
    return f"SELECT *, window_start + {options.size} AS window_end FROM (SELECT *, {_floor('time', options.size, options.offset)} AS window_start FROM {events})"


def _sliding(connection: Any, events: str, options: Any, keys: list[str]) -> str:
    if options.timezone is not None:
        return _days(connection, events, options, options.size, options.every)
    first, last = (_floor(time, options.every, options.offset) for time in (f"(time - {options.size})", "time"))
    starts = f"unnest(generate_series({first} + {options.every}, {last}, {options.every}))"
    return f"SELECT *, window_start + {options.size} AS window_end FROM (SELECT *, {starts} AS window_start FROM {events})"


def _cumulative(connection: Any, events: str, options: Any, keys: list[str]) -> str:
    every = options.every
    if options.timezone is None:
        begun = f"SELECT *, {_floor('time', options.size, options.offset)} AS window_start FROM {events}"
        periods = f"SELECT *, window_start + {options.size} AS period_end FROM ({begun})"
    else:
        periods = _days(connection, events, options, options.size, options.size).replace("AS window_end", "AS period_end")
        if every % DAY == 0:
            # Ends are midnights as well: a step is one of days, and there is one midnight table for both.
            steps = _days(connection, events, options, options.size, options.size).replace(" AS window_end", " AS period_end, event.first, event.number")
            ends = f"SELECT * EXCLUDE (number, first), unnest(generate_series((number - first) // {every // DAY} + 1, {options.size // every})) * {every // DAY} + first AS step FROM ({steps})"
            return f"SELECT placed.* EXCLUDE (step, period_end), midnight AS window_end FROM ({ends}) placed JOIN midnights ON midnights.number = step"
    ends = f"unnest(generate_series(window_start + ((time - window_start) // {every} + 1) * {every}, period_end, {every}))"
    return f"SELECT * EXCLUDE (period_end), {ends} AS window_end FROM ({periods})"


def _global(connection: Any, events: str, options: Any, keys: list[str]) -> str:
    return f"SELECT *, 0::BIGINT AS window_start, {END} AS window_end FROM {events}"


def _session(connection: Any, events: str, options: Any, keys: list[str]) -> str:
    """Gaps and islands. A chain that is longer than ``max`` is cut at its multiples."""
    gap = options.gap
    by = f"PARTITION BY {', '.join(keys)}" if keys else ""
    of_chain = f"PARTITION BY {', '.join([*keys, 'chain'])}"
    chains = f"""
        SELECT *, min(time) OVER ({of_chain}) AS chain_start, max(time) OVER ({of_chain}) AS chain_last FROM (
            SELECT *, count(*) FILTER (apart) OVER ({by} ORDER BY time, split, position ROWS UNBOUNDED PRECEDING) AS chain
            FROM (SELECT *, time - lag(time) OVER ({by} ORDER BY time, split, position) >= {gap} AS apart FROM {events})
        )
    """
    if options.max is None:
        return f"SELECT * EXCLUDE (apart, chain, chain_start, chain_last), chain_start AS window_start, chain_last + {gap} AS window_end FROM ({chains})"
    cell = f"CASE WHEN chain_last + {gap} - chain_start > {options.max} THEN {_floor('time', options.max, 0)} END"
    of_part = f"PARTITION BY {', '.join([*keys, 'chain', 'cell'])}"
    return f"""
        SELECT * EXCLUDE (apart, chain, chain_start, chain_last, cell), min(time) OVER ({of_part}) AS window_start,
            least(max(time) OVER ({of_part}) + {gap}, coalesce(cell + {options.max}, 9223372036854775807)) AS window_end
        FROM (SELECT *, {cell} AS cell FROM ({chains}))
    """


def _days(connection: Any, events: str, options: Any, size: int, every: int) -> str:
    """Windows of whole days of a time zone. Makes the table ``midnights``: the number of each day, and when it begins there (plus the offset)."""
    lowest, highest = connection.execute(f"SELECT coalesce(min(time), 0), coalesce(max(time), 0) FROM {events}").fetchall()[0]
    shift, days, step, around = options.offset % DAY, size // DAY, every // DAY, options.offset // DAY
    numbers = range(lowest // DAY - days - 3, highest // DAY + days + 4)
    midnights = pa.table({"number": pa.array(numbers, pa.int64()), "midnight": pa.array([_instant(number * DAY + shift, options.timezone) for number in numbers], pa.int64())})
    connection.register("midnight_rows", midnights)
    connection.execute("CREATE OR REPLACE TABLE midnights AS SELECT * FROM midnight_rows")
    connection.unregister("midnight_rows")
    first, last = (_floor(number, step, around) for number in (f"(number - {days})", "number"))
    starts = f"unnest(generate_series({first} + {step}, {last}, {step}))"
    numbered = f"SELECT event.*, number FROM {events} event ASOF JOIN midnights ON event.time >= midnights.midnight"
    return (
        f"SELECT event.* EXCLUDE (number, first), begins.midnight AS window_start, ends.midnight AS window_end FROM (SELECT *, {starts} AS first FROM ({numbered})) event "
        f"JOIN midnights begins ON begins.number = first JOIN midnights ends ON ends.number = first + {days}"
    )


def _instant(wall: int, zone: str) -> int:
    """When a clock shows ``wall`` (microseconds since 1970 there) for the first time, or, where it leaves that out, when it jumps."""
    there = (_EPOCH + timedelta(microseconds=wall)).replace(tzinfo=ZoneInfo(zone))
    found = there.astimezone(timezone.utc)
    back = found.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    skipped = max(back - there.replace(tzinfo=None), timedelta(0)) if there.fold == 0 else timedelta(0)
    if skipped:
        later = there.replace(fold=1).astimezone(timezone.utc)
        # The jump lies between both readings of what is not there: the clock before it and the one behind it agree on the moment only there.
        low, high = min(found, later), max(found, later)
        while high - low > timedelta(seconds=1):
            middle = low + (high - low) / 2
            low, high = (low, middle) if middle.astimezone(ZoneInfo(zone)).replace(tzinfo=None) > there.replace(tzinfo=None) else (middle, high)
        found = high.replace(microsecond=0)
    return (found.replace(tzinfo=None) - _EPOCH) // timedelta(microseconds=1)


_KINDS: dict[str, Callable[[Any, str, Any, list[str]], str]] = {
    "tumbling": _tumbling, "sliding": _sliding, "cumulative": _cumulative, "global": _global, "session": _session,
}  # fmt: skip
KINDS = tuple(_KINDS)
"""Windows that are known here."""
