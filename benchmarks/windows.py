"""What keys, sessions, sliding windows and windows with hardly an event cost beside small tumbling ones: ``scripts/bench --windows``. No broker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks import jobs
from benchmarks.jobs import FEW, Case
from benchmarks.measure import run

KEYS = (1_000, 100_000, 1_000_000)
SESSIONS = 100_000
SLIDES = (1, 10, 60)
RATE = 1_000_000
"""Events per second of event time, so in each slide: what a window costs besides its events is the same for few."""
SHARES = {"keys": 1.0, "sessions": 0.4, "sliding": 2.0, "sparse": 0.001}
"""Sessions get so much of the events, for they cost more; sliding windows more, for after the last event as many windows end as overlap. Of sparse events nearly each is a
window and shard of its own."""

PARTS = ("keys", "sessions", "sliding", "sparse")


@dataclass(frozen=True)
class Row:
    """Medians over all runs.

    Attributes:
        part: what is compared, with the rows of the same name.
        ns: CPU nanoseconds an event; of jobs those of all processes, without what starting costs.
        times: ``ns`` as a multiple of the first row's.
        peak_mb: of the steps alone what they need above the start; of jobs all processes.
        events_per_s: of jobs; None: not known.
        correct: whether every event was in the rows, as often as it is in windows, in all runs.
        runs: the values of ``ns``.
    """

    part: str
    case: str
    ns: float
    times: float
    peak_mb: float
    events_per_s: float | None
    correct: bool
    runs: list[float]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


Measured = tuple[float, float, float | None, bool]
"""CPU nanoseconds an event, peak MB, events per second, whether all events were in the rows."""


def measure(parts: tuple[str, ...], events: int, runs: int, folder: Path, say: Callable[[str], None]) -> list[Row]:
    """All cases in turn, ``runs`` times. Raises ContenderFailed."""
    cases = {key: case for key, case in _cases(events).items() if key[0].split(",")[0] in parts}
    found: dict[tuple[str, str], list[Measured]] = {key: [] for key in cases}
    starts: list[float] = []
    for number in range(runs):
        where = folder / str(number)
        start = jobs.measure(Case({"tumbling": "1m"}, 1_000, RATE), FEW, where / f"start-{number}")
        starts.append(start.cpu_s)
        for place, (key, case) in enumerate(cases.items()):
            say(f"run {number + 1}: {', '.join(key)} ...")
            found[key].append(_steps(*case) if isinstance(case, tuple) else _job(case, int(events * SHARES[key[0].split(",")[0]]), median(starts), where / f"{place}-{number}"))
    first = {part: median(ns for ns, *_ in measured) for (part, _), measured in reversed(found.items())}
    return [_row(part, case, measured, first[part]) for (part, case), measured in found.items()]


def _cases(events: int) -> dict[tuple[str, str], Case | tuple[str, int, int]]:
    steps, whole = ", steps alone", ", whole job"
    one_window = events / 50
    sliding = {f"{size} s": Case({"sliding": {"size": f"{size}s", "every": "1s"}}, KEYS[0], RATE) for size in SLIDES}
    return {
        **{(f"keys{steps}", f"{keys:,}"): ("keys", keys, events) for keys in KEYS},
        **{(f"keys{whole}", f"{keys:,}"): Case({"tumbling": "1m"}, keys, one_window) for keys in KEYS},
        (f"sessions{steps}", f"{SESSIONS:,} open"): ("sessions", SESSIONS, int(events * SHARES["sessions"])),
        (f"sessions{whole}", f"{SESSIONS:,} open"): Case({"session": "30s"}, SESSIONS, SESSIONS / 10),
        (f"sliding{whole}", "tumbling 1 s"): Case({"tumbling": "1s"}, KEYS[0], RATE),
        **{(f"sliding{whole}", f"sliding {size} every 1 s"): case for size, case in sliding.items()},
        (f"sparse{whole}", "two events a window"): Case({"tumbling": "1m"}, 20, 1 / 30),
    }


def _steps(what: str, keys: int, events: int, log: Path = Path("/dev/null")) -> Measured:
    said, _, _ = run([sys.executable, "-m", "benchmarks.algebra", what, str(keys), str(events)], log)
    return said["ns"], said["memory_mb"], None, True


def _job(case: Case, events: int, start: float, folder: Path) -> Measured:
    cost = jobs.measure(case, events, folder)
    # With size/every = n, each event is in n windows.
    windows = int(case.window["sliding"]["size"][:-1]) if "sliding" in case.window else 1
    # ``start`` is that of a run of FEW events; where there are fewer, and each costs a thousand times as much, those are nothing.
    return (cost.cpu_s - start) * 1e9 / (events - FEW if events > FEW else events), cost.peak_mb, events / cost.seconds, cost.counted == events * windows


def _row(part: str, case: str, measured: list[Measured], first: float) -> Row:
    ns, rates = [ns for ns, *_ in measured], [rate for _, _, rate, _ in measured if rate is not None]
    peak, correct = median(peak for _, peak, _, _ in measured), all(correct for *_, correct in measured)
    return Row(part, case, median(ns), median(ns) / first, peak, median(rates) if rates else None, correct, ns)
