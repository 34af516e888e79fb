"""Whether a changed job can go on from the state of the one that ran before: step by step, in words.

Exactness first: what is not known to be right is refused, with the way out. What Flink and Beam do with state was tried on a cluster:

- Timers and state are found by the full name of their step. Another name is another step.
- Changed lateness fails: how long a slice is kept is part of the name under which its state is found.
- Sinks come and go freely: they keep no state.
- An embedded Flink knows its sources by their number, in an order that nobody sees. One more, and an old one may begin again while the new one
  never does. It also takes a source for another one when the parallelism becomes 1, or was. On a cluster our own launcher names them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal

from streamgauge.pipelines.job_layout import AGGREGATE, FOREIGN_SOURCE, READ
from streamgauge.pipelines.reshard import REACHED
from streamgauge.transforms.config import MICROSECONDS, format_duration
from streamgauge.transforms.hashing import MAX_PARALLELISM
from streamgauge.transforms.state_layout import Layout, StepLayout

REPLAY = "replay from recorded positions (--replay): the windows that are not complete are computed anew"
ANEW = "start anew with --fresh, into another table (sessions cannot be replayed from recorded positions)"
DROP = "--drop-state forgets it"
OF_ITS_OWN = "give the new aggregates an AggregateWindows of their own (it starts empty from where reading stands), or " + REPLAY
"""Ways out, as the launcher spells them."""

_FREE: dict[str, dict[str, str]] = {
    "kafka": {
        "client": "new connections have the new settings",
        "group": "positions are committed to the new group, for monitors only",
        "max_bytes": "it holds for payloads from here on",
        "on_data_loss": "it holds from here on",
        "start": "partitions go on where they stand; it only says where a new job begins",
    },
    "files": {"max_line": "it holds for lines from here on"},
    "generator": {"rate": "the same events come at another rate"},
}
"""Options of a source that may change, with what that does; any other means that positions belong to something else."""


@dataclass(frozen=True)
class Change:
    """One difference between two layouts.

    Attributes:
        step: full name of the step; empty: the whole job. what: what is different.
        verdict: whether the state can be used. effect: what happens to it, or why it cannot be used, and what to do instead.
    """

    step: str
    what: str
    verdict: Literal["resumes", "refused"]
    effect: str

    def __str__(self) -> str:
        return f"{self.step + ': ' if self.step else ''}{self.what}: {self.effect}"


def compare(before: Layout, after: Layout, *, allow_dropped: bool = False, named_sources: bool = False) -> list[Change]:
    """Every difference that matters to state; the job resumes if none is ``refused``.

    Args:
        before: of the run whose savepoint or checkpoint it is. after: of the job that shall start from it.
        allow_dropped: state of steps that are gone may be forgotten. The launcher then has to tell Flink so too, and only then.
        named_sources: the launcher names sources (a cluster), or Flink numbers them (embedded).
    """
    changes = list(_whole(before, after, named_sources))
    for name, step in before.steps.items():
        other = after.steps.get(name)
        if other is None:
            changes.append(_removed(name, step, after, before, allow_dropped))
        elif other.kind != step.kind:
            changes.append(Change(name, f"was {step.kind} and is {other.kind}", "refused", f"its state is of another kind; give the step another name, or {REPLAY}"))
        else:
            changes += _COMPARED.get(step.kind, _opaque)(name, step.values, other.values)
    changes += [_added(name, step, named_sources) for name, step in after.steps.items() if name not in before.steps]
    if any(_has_sessions(layout) for layout in (before, after)):
        return [replace(change, effect=change.effect.replace(REPLAY, ANEW)) for change in changes]
    return changes


def _has_sessions(layout: Layout) -> bool:
    return any(step.kind == AGGREGATE and step.values["window"]["kind"] == "session" for step in layout.steps.values())


def _whole(before: Layout, after: Layout, named_sources: bool) -> Iterator[Change]:
    if before.state_version != after.state_version:
        what = f"the state is of version {before.state_version}, this release reads version {after.state_version}"
        yield Change("", what, "refused", f"let the earlier release drain the job, or {REPLAY}")
    if before.beam != after.beam:
        what = f"Apache Beam {before.beam} -> {after.beam}"
        yield Change("", what, "refused", f"state does not survive another version of Beam; drain the job with the old one, or {REPLAY}")
    old, new = before.parallelism, after.parallelism
    if old is not None and new is not None and old != new:
        what = f"parallelism {old} -> {new}"
        if new > MAX_PARALLELISM:
            yield Change("", what, "refused", f"state is divided into {MAX_PARALLELISM} parts; take at most {MAX_PARALLELISM}")
        elif 1 in (old, new) and not named_sources:
            yield Change("", what, "refused", f"an embedded Flink would not know its sources again; keep {old}, or {REPLAY}")
        else:
            yield Change("", what, "resumes", "its state is divided among the subtasks anew")


def _removed(name: str, step: StepLayout, after: Layout, before: Layout, allowed: bool) -> Change:
    lost = {READ: "its positions are", AGGREGATE: "its open windows are"}.get(step.kind, "its state is")
    if allowed:
        return Change(name, "is not there any more", "resumes", f"{lost} forgotten")
    new = [other for other, layout in after.steps.items() if other not in before.steps and layout.kind == step.kind]
    hint = f" (renamed to {' or '.join(new)}? A step is known by its name)" if new else ""
    return Change(name, "is not there any more", "refused", f"{lost} in the state{hint}; give the step its name back, or {DROP}")


def _added(name: str, step: StepLayout, named_sources: bool) -> Change:
    if step.kind == AGGREGATE:
        return Change(name, "is new", "resumes", "it starts empty from where reading stands: its first windows hold only what comes from here on")
    if step.kind not in (READ, FOREIGN_SOURCE):
        return Change(name, "is new", "resumes", "it starts empty from where reading stands")
    if named_sources:
        return Change(name, "is new", "resumes", "it is read from its own start")
    return Change(
        name, "is new", "refused", f"an embedded Flink would mistake one source for another; give it a job file of its own, run on a cluster, or {REPLAY}"
    )


def _reading(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    old, new = before["source"], after["source"]
    yield from _source(name, old, new)
    for key, words in (("field", "time.field"), ("unit", "time.unit")):
        if before["time"][key] != after["time"][key]:
            what = f"{words} {before['time'][key] or 'unset'} -> {after['time'][key] or 'unset'}"
            yield Change(name, what, "refused", "watermark and open windows are of the old event times; start anew with --fresh, into another table")
    for key, effect in (("disorder", "the watermark waits so long from here on; it never goes back"), ("idle", "it holds from here on")):
        if before["time"][key] != after["time"][key]:
            yield Change(name, f"time.{key} {_duration(before['time'][key])} -> {_duration(after['time'][key])}", "resumes", effect)
    if before["format"] != after["format"]:
        yield Change(name, "format", "resumes", "payloads are read so from here on; no state has their fields")


def _source(name: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    if old["kind"] != new["kind"] or old["name"] != new["name"] or old["bounded"] != new["bounded"]:
        end = "" if old["bounded"] == new["bounded"] else f", which {'ends' if new['bounded'] else 'does not end'}"
        effect = f"the positions in the state are those of {old['name']}; {REPLAY}"
        yield Change(name, f"reads {old['name']} -> {new['name']}{end}", "refused", effect)
        return
    free = _FREE.get(new["kind"], {})
    for key in sorted({*old["options"], *new["options"]}):
        was, now = old["options"].get(key), new["options"].get(key)
        if was == now:
            continue
        if key in free:
            yield Change(name, f"from.{key}", "resumes", free[key])
        elif (reason := other_positions(new["kind"], key, was, now)) is None:
            yield Change(name, f"from.{key} {was} -> {now}", "resumes", "an address in common: it is the same cluster, and reading goes on where it stands")
        else:
            yield Change(name, f"from.{key}", "refused", reason)


def other_positions(kind: str, key: str, was: Any, now: Any) -> str | None:
    """Why positions of a source with one value of an option do not hold with the other; None: they do."""
    if was == now or key in _FREE.get(kind, {}):
        return None
    if (kind, key) == ("kafka", "brokers"):
        if {address.strip() for address in was.split(",")} & {address.strip() for address in now.split(",")}:
            return None
        return f"{now} may be another cluster than {was}, with other offsets; keep one of the old addresses in the list, or start anew with --fresh"
    return f"the positions in the state may mean something else then; undo the change, or {REPLAY}"


def _aggregating(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    if before["reads"] != after["reads"]:
        what = f"input {' and '.join(before['reads'])} -> {' and '.join(after['reads'])}"
        yield Change(name, what, "refused", f"open windows hold events of the old input; {REPLAY}")
    if before["window"] != after["window"]:
        what = f"window {before['window']['says']} -> {after['window']['says']}"
        yield Change(name, what, "refused", f"open windows are of the old kind; {REPLAY}")
    if before["lateness"] != after["lateness"]:
        what = f"lateness {_duration(before['lateness'])} -> {_duration(after['lateness'])}"
        yield Change(name, what, "refused", f"open windows hold the time at which they are cleared, and closed ones would open again with part of their events; {REPLAY}")
    if before["shards"] != after["shards"]:
        yield _shards(name, before, after)
    if before["keys"] != after["keys"]:
        yield Change(name, f"keys {key_limit(before)} -> {key_limit(after)}", "refused", f"open windows have the keys of the old limit; {REPLAY}")
    yield from _dimensions(name, before, after)
    yield from _state_columns(name, before, after)
    if before["metric"] != after["metric"]:
        effect = "rows from here on have the new name; an open window may have rows under both"
        yield Change(name, f"metric {before['metric']} -> {after['metric']}", "resumes", effect)
    if before["emit"] != after["emit"]:
        yield Change(name, f"emit {_emits(before)} -> {_emits(after)}", "resumes", "open windows are kept; it holds for what comes from here on")


def _shards(name: str, before: dict[str, Any], after: dict[str, Any]) -> Change:
    what = f"shards {before['shards']} -> {after['shards']}"
    if before.get("earlier_shards") is None or after["earlier_shards"] is None:
        return Change(name, what, "refused", f"keys of open windows would be in other shards; {REPLAY}")
    if REACHED not in before:
        return Change(name, what, "refused", f"it is not known which windows have begun; {REPLAY}")
    if before[REACHED] is None:
        return Change(name, what, "resumes", "no window has begun yet")
    last = datetime.fromtimestamp(before[REACHED] / MICROSECONDS["s"], timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Change(name, what, "resumes", f"windows that start after {last} have the new number, those before keep theirs")


def _dimensions(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    old, new = ([[field, kind] for _, field, kind in values["dimensions"]] for values in (before, after))
    if old != new:
        what = f"by {_fields(before['dimensions'])} -> {_fields(after['dimensions'])}"
        yield Change(name, what, "refused", f"open windows are grouped by the old dimensions; {REPLAY}")
    elif before["dimensions"] != after["dimensions"]:
        names = [", ".join(column for column, _, _ in values["dimensions"]) for values in (before, after)]
        yield Change(name, f"columns {names[0]} -> {names[1]}", "resumes", "the same fields under other names: open windows are kept")


def _state_columns(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """Aggregates that came, went or changed: what counts is which columns of state they need."""
    old, new = before["state"], after["state"]
    lacking = [column for column, kind in new.items() if old.get(column) != kind]
    dropped = [column for column in old if column not in new]
    gone = sorted(set(before["aggregates"]) - set(after["aggregates"]))
    come = sorted(key for key, aggregate in after["aggregates"].items() if before["aggregates"].get(key) != aggregate)
    if lacking:
        what = f"aggregates {', '.join(come)}" if come else f"types of the fields of {', '.join(lacking)}"
        columns = ", ".join(f"{column} as {new[column]}" if column in old else column for column in lacking)
        yield Change(name, what, "refused", f"open windows do not have {columns}; {OF_ITS_OWN}")
    elif come:
        yield Change(name, f"aggregates {', '.join(come)}", "resumes", "open windows have all that they need")
    if gone or dropped:
        effect = f"{', '.join(dropped)} of open windows is dropped when they are next merged" if dropped else "open windows are kept"
        yield Change(name, f"without {', '.join(gone)}" if gone else f"without {', '.join(dropped)}", "resumes", effect)


def _opaque(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    for key in sorted({*before, *after}):
        was, now = before.get(key), after.get(key)
        if was != now:
            shown = f" {_duration(was)} -> {_duration(now)}" if key == "horizon" else f" {was} -> {now}"
            yield Change(name, f"{key}{shown}", "refused", f"its state was made with the old value; {REPLAY}")


_COMPARED = {READ: _reading, AGGREGATE: _aggregating}


def _duration(value: Any) -> str:
    return format_duration(value) if isinstance(value, int) else "unset"


def _emits(values: dict[str, Any]) -> str:
    emit = values["emit"]
    return emit if isinstance(emit, str) else f"every {_duration(emit['every'])}"


def key_limit(values: dict[str, Any]) -> str:
    """The limit on keys of an AggregateWindows, in words."""
    keys = values["keys"]
    return "without a limit" if keys is None else f"limit {keys['limit']}, beyond {keys['beyond']}"


def _fields(dimensions: list[list[str]]) -> str:
    return ", ".join(f"{field} ({kind})" for _, field, kind in dimensions) or "nothing"
