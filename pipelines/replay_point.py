"""From where a new run has to read so that every window is stored once and whole: for what cannot start from the state of the run before.

Every window is on one side of a *cutoff*, for each AggregateWindows its own. Windows before it are complete and stored: the new run leaves them
alone. Windows from it on are computed anew from all their events: each split is read from the last known position before which every event is
older than the earliest cutoff. The number of events, which is the revision, is then at least that of what is stored, so every store takes the row.

What is late is judged per split by the events before in the same split. Those that are not read again are all older than the cutoff: they could not
have made an event of a later window late. So both runs together judge as one run over everything would. Events behind the old run's
end that belong to a window before the cutoff would have come too late for it as well: they are late in the new run. (Splits that were idle,
and so followed others, are judged by when that was, as ever.)

Sessions have no such cutoff: they are refused.

Limits. Payloads that the old format rejected are read again only behind the start. A Deduplicate is shown again what is at most its horizon older than
the cutoff; but which of two copies in different splits it sees first is chance, so where they also have different event times, the old run may have
counted one before the cutoff and the new run counts the other. Which stores take a row goes by the number of events: a job that counts fewer of
them than before (a new filter) needs another metric name or table.
"""

from __future__ import annotations

from typing import Any

from streamgauge.pipelines.compat import key_limit, other_positions
from streamgauge.pipelines.job import Job
from streamgauge.pipelines.job_layout import AGGREGATE, DEDUPLICATE, READ, layout_of
from streamgauge.transforms.config import format_duration
from streamgauge.transforms.event_time import MAX_TIME
from streamgauge.transforms.position_index import PositionIndex
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.replay import ReplayPoint, SplitPoint, first_open, split_key
from streamgauge.transforms.state_layout import Layout, StepLayout
from streamgauge.transforms.windows import WINDOWS
from streamgauge.transforms.windows.base import Window, is_session

_EXTENT = ("start", "stop", "path", "follow", "events")
"""Options of sources that say from where to where to read, and not what a position means."""


class ReplayError(ValueError):
    """A replay could not give the right rows; one line says why and what to do."""


def make_replay_point(
    record: JobRecord, job: Job, *, watermark: int | None, before: Layout | None = None, previous: ReplayPoint | None = None
) -> ReplayPoint:
    """Where the new run of ``job`` starts. To be called after the old run has stopped and before its record is cleared.

    Args:
        record: of the run that stopped.
        watermark: the least watermark that every step had passed before it stopped (microseconds since the epoch); None: none had one yet. It may be
            one that was seen a while before; what the readers had reported is taken into account.
        before: layout of the run that stopped; None: the job is unchanged.
        previous: the replay point with which the run that stopped was started itself, if it was.

    Raises ReplayError.
    """
    after = layout_of(job)
    old = before or after
    _check_windows(old, after)
    _check_sources(old, after)
    notes = [note for name in _named(after, AGGREGATE) if name in old.steps for note in _check_rows(name, old.steps[name], after.steps[name])]
    sources = {old.steps[name].values["source"]["name"] for name in _named(old, READ)}
    notes += [f"{name}: copies of an event in different splits and with different times may both count near the cutoff" for name in _named(after, DEDUPLICATE)]
    seen = {split_key(values["source"], values["split"]): values for values in record.all("splits") if values["source"] in sources}
    complete = _complete(list(seen.values()), watermark)
    cutoff = _cutoffs(old, after, complete, previous)
    earliest = min(cutoff.values()) if cutoff and len(cutoff) == len(_named(after, AGGREGATE)) else None
    if earliest is not None:
        earliest -= max((after.steps[name].values["horizon"] for name in _named(after, DEDUPLICATE)), default=0)
    known = {split_key(values["source"], values["split"]): values for values in record.all("positions")}
    splits = {key: _split(key, values, known.get(key), earliest, previous) for key, values in seen.items()}
    for key, point in (previous.splits if previous else {}).items():
        if key not in splits:
            index = PositionIndex(point.begin, point.facts)
            splits[key] = SplitPoint(point.source, index.start_before(earliest), point.end, point.begin, point.facts)
    return ReplayPoint(cutoff, splits, notes)


def _complete(splits: list[dict[str, Any]], watermark: int | None) -> int | None:
    """The moment (microseconds) up to which every window that has ended, and its lateness with it, is stored.

    Not after what any split had reported when its position was written down: so that position is known to be behind all that counted.
    """
    reported = [values["watermark"] for values in splits if not values.get("finished")]
    if watermark is None or None in reported:
        return None
    return int(min([watermark, *reported, MAX_TIME]))


def _cutoffs(old: Layout, after: Layout, complete: int | None, previous: ReplayPoint | None) -> dict[str, int]:
    """Start of the first window of each step that may still change or was not surely stored; a step is missing where that is every window."""
    stored: dict[str, int | None] = {}
    for name in _named(old, AGGREGATE):
        known = [] if complete is None else [first_open(_window(old.steps[name]), complete - old.steps[name].values["lateness"])]
        known += [previous.cutoff[name]] if previous and name in previous.cutoff else []
        stored[name] = max(known, default=None)
    found = {}
    for name in _named(after, AGGREGATE):
        moments = [stored[name]] if name in stored else list(stored.values())
        reached = [moment for moment in moments if moment is not None]
        if not reached or len(reached) < len(moments):
            continue
        window, values = _window(after.steps[name]), after.steps[name].values
        # Windows that overlap the first open one are complete where they began before it; of windows of another kind nobody knows.
        same = name in stored and old.steps[name].values["window"] == values["window"]
        found[name] = min(reached) if same else first_open(window, min(reached))
        if name in stored and complete is not None and values["lateness"] > old.steps[name].values["lateness"]:
            # By the new job's terms older windows may still change: they need all their events again.
            found[name] = min(found[name], first_open(window, complete - values["lateness"]))
    return found


def _split(key: str, values: dict[str, Any], known: dict[str, Any] | None, earliest: int | None, previous: ReplayPoint | None) -> SplitPoint:
    earlier = previous.splits.get(key) if previous else None
    if known is not None:
        index = PositionIndex(known["begin"], [(position, newest) for position, newest in known["facts"]])
    else:
        index = PositionIndex(earlier.begin, earlier.facts) if earlier else PositionIndex(values["start"])
    end = max(values["position"], earlier.end if earlier else values["position"])
    return SplitPoint(values["source"], index.start_before(earliest), end, index.begin, index.facts)


def _named(layout: Layout, kind: str) -> list[str]:
    return [name for name, step in layout.steps.items() if step.kind == kind]


def _window(step: StepLayout) -> Window:
    window = step.values["window"]
    plugin = WINDOWS.load(window["kind"])
    made: Window = plugin(plugin.Options.model_validate(window["options"]))
    return made


def _check_windows(old: Layout, after: Layout) -> None:
    """Of sessions nobody knows where the first unfinished one begins: they have no border that all keys share."""
    for layout in (old, after):
        for name in _named(layout, AGGREGATE):
            window = layout.steps[name].values["window"]
            if is_session(_window(layout.steps[name])):
                raise ReplayError(
                    f"{name}: window {window['says']}: sessions begin where the events of their key say, so there is no position from which all unfinished ones are "
                    "whole; resume from the state, or start anew with --fresh"
                )


def _check_sources(old: Layout, after: Layout) -> None:
    """What is known of a source's positions has to hold for whoever reads it."""
    readers = [(name, layout.steps[name].values) for layout in (old, after) for name in _named(layout, READ)]
    for name, values in readers:
        for other, others in readers:
            if values["source"]["name"] != others["source"]["name"]:
                continue
            what = values["source"]["name"]
            times = [f"time.field {one['time']['field']}, unit {one['time']['unit']}" for one in (values, others)]
            if times[0] != times[1]:
                raise ReplayError(f"{what} is read with {times[0]} and with {times[1]}: positions by one are none by the other; start anew with --fresh, into another table")
            for key in {*values["source"]["options"], *others["source"]["options"]}:
                was, now = values["source"]["options"].get(key), others["source"]["options"].get(key)
                if key not in _EXTENT and other_positions(values["source"]["kind"], key, was, now) is not None:
                    steps = name if name == other else f"{name} and {other}"
                    raise ReplayError(f"{what} is read with from.{key} {was} and {now} ({steps}): a position of one may be another event of the other; start anew with --fresh")


def _zone(values: dict[str, Any]) -> str | None:
    zone: str | None = values["window"]["options"].get("timezone")
    return zone


def _check_rows(name: str, old: StepLayout, new: StepLayout) -> list[str]:
    """Rows of a changed window have the keys of old rows with which they share the start: they must not count less. Returns what people should know."""
    before, after = old.values, new.values
    if before["metric"] != after["metric"]:
        return []
    if before["keys"] != after["keys"]:
        raise ReplayError(
            f"{name}: keys {key_limit(before)} -> {key_limit(after)}: rows of keys that only the old limit lets in would stay beside the new ones; give the metric "
            f"another name than {before['metric']}"
        )
    if before["window"] == after["window"]:
        return []
    what = f"{name}: window {before['window']['says']} -> {after['window']['says']}"
    sizes = before["window"]["slice_size"], after["window"]["slice_size"]
    tumbling = before["window"]["kind"] == after["window"]["kind"] == "tumbling" and _zone(before) == _zone(after)
    if not tumbling or sizes[1] % sizes[0] or (after["window"]["offset"] - before["window"]["offset"]) % sizes[0]:
        raise ReplayError(
            f"{what}: rows of both have the same keys, and a store does not replace a row by one of fewer events; give the metric another name than {before['metric']}"
        )
    return [f"{what}: rows of unfinished windows of {format_duration(sizes[0])} stay beside the new ones, unless the metric has another name"]
