"""From what was seen to figures: delays, percentiles, and what was going on meanwhile. No servers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Interval = tuple[int, int]
"""Begin and end, microseconds since the epoch."""

SHARES = (50.0, 95.0, 99.0, 99.9)
_PAUSE = re.compile(r"^\[(\d+)ms\].*\bPause .*?([\d.]+)ms$")


def percentiles(delays: npt.NDArray[np.int64], weights: npt.NDArray[np.int64] | None = None) -> dict[str, float | None]:
    """p50 to p99.9 and max, in milliseconds; a percentile is the smallest delay that so large a share of the weights does not exceed.

    >>> percentiles(np.array([1000, 2000, 3000, 4000]))
    {'p50': 2.0, 'p95': 4.0, 'p99': 4.0, 'p99.9': 4.0, 'max': 4.0}
    """
    if not len(delays):
        return dict.fromkeys([*(f"p{share:g}" for share in SHARES), "max"])
    order = np.argsort(delays, kind="stable")
    upto = np.cumsum(np.ones(len(delays), np.int64) if weights is None else weights[order])
    at = [int(np.searchsorted(upto, share / 100 * upto[-1] - 1e-9)) for share in SHARES]
    found = {f"p{share:g}": float(delays[order[place]]) / 1000 for share, place in zip(SHARES, at, strict=True)}
    return {**found, "max": float(delays[order[-1]]) / 1000}


def overlaps(begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], intervals: Iterable[Interval]) -> npt.NDArray[np.bool_]:
    """Which samples, from begin to end, have a moment in common with one of the intervals."""
    found = np.zeros(len(begins), bool)
    for begin, end in intervals:
        found |= (begins <= end) & (ends >= begin)
    return found


def during(name: str, samples: npt.NDArray[np.int64]) -> dict[str, Any]:
    """A row of the report about samples, each a begin and an end."""
    return {"during": name, "samples": len(samples), **percentiles(samples[:, 1] - samples[:, 0])}


def by_condition(samples: npt.NDArray[np.int64], conditions: Mapping[str, Sequence[Interval]]) -> list[dict[str, Any]]:
    """A row for all samples, one for those during each condition, and one for those during none."""
    within = {name: overlaps(samples[:, 0], samples[:, 1], intervals) for name, intervals in conditions.items()}
    none = ~np.logical_or.reduce([np.zeros(len(samples), bool), *within.values()])
    chosen = {"all": np.ones(len(samples), bool), **within, **({"none of these": none} if within else {})}
    return [during(name, samples[mask]) for name, mask in chosen.items()]


def finals(found: Sequence[Sequence[int]], size: int, first: int, last: int) -> dict[str, Any]:
    """Delays of final rows behind their windows' ends, for windows that begin at ``first`` or later and end by ``last`` (microseconds).

    ``rows``: every row counts. ``windows``: the last row of each window.
    """
    chosen = [(start, seen, count) for start, seen, count in found if start >= first and start + size <= last]
    delays = np.array([seen - start - size for start, seen, _ in chosen], np.int64)
    whole: dict[int, int] = {}
    for start, seen, _ in chosen:
        whole[start] = max(seen - start - size, whole.get(start, seen - start - size))
    return {
        "rows": {"samples": sum(count for *_, count in chosen), **percentiles(delays, np.array([count for *_, count in chosen], np.int64))},
        "windows": {"samples": len(whole), **percentiles(np.array(list(whole.values()), np.int64))},
    }


def pauses(log: str) -> list[Interval]:
    """Garbage collections of a JVM from its log (``-Xlog:gc:file=...:timemillis``), whose lines come at a pause's end.

    >>> pauses("[1700000000123ms] GC(3) Pause Young (Normal) (G1 Evacuation Pause) 60M->24M(98M) 4.500ms")
    [(1700000000118500, 1700000000123000)]
    """
    found = (_PAUSE.match(line) for line in log.splitlines())
    return [(int(match[1]) * 1000 - round(float(match[2]) * 1000), int(match[1]) * 1000) for match in found if match]
