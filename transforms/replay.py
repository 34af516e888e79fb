"""A replay point: from where a new run reads again, and which windows it leaves as an earlier run stored them. See pipelines/replay_point.py."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streamgauge.transforms.config import user_error
from streamgauge.transforms.files import replace_text
from streamgauge.transforms.sources.base import Split
from streamgauge.transforms.windows.base import Window


@dataclass(frozen=True)
class SplitPoint:
    """Where one split is read again.

    Attributes:
        source: name of its connector, for people. start: first position to read.
        end: where the earlier run had come to: older events before it are stored or were told as late already, those behind it are late now.
        begin, facts: see PositionIndex; what is known of the positions before ``start``.
    """

    source: str
    start: int
    end: int
    begin: int
    facts: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class ReplayPoint:
    """What a replay needs to know.

    Attributes:
        cutoff: by the full Beam name of an AggregateWindows, the start (microseconds) of its first window to be computed; a step that is not
            there computes all windows.
        splits: by ``split_key``. A split that is not there is read from its own start.
        notes: what people should know of it, a sentence each.
    """

    cutoff: dict[str, int]
    splits: dict[str, SplitPoint]
    notes: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes the file for ``--replay_point``."""
        replace_text(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: str | Path) -> ReplayPoint:
        """What ``save`` wrote. Raises FileNotFoundError."""
        values = json.loads(Path(path).read_text())
        return cls(values["cutoff"], {key: _split_point(split) for key, split in values["splits"].items()}, values["notes"])

    def split(self, source: str, split: str) -> SplitPoint | None:
        """The point of a split of the connector named ``source``."""
        return self.splits.get(split_key(source, split))

    def placed(self, source: str, split: Split) -> Split:
        """The split as a replay reads it."""
        point = self.split(source, split.id)
        return split if point is None else Split(split.id, point.start, split.end)

    def missing(self, source: str, found: Collection[str]) -> list[str]:
        """Ids of splits with events that the replay needs, which the source does not have any more."""
        points = ((key.partition("/")[2], point) for key, point in self.splits.items() if point.source == source)
        return sorted(split for split, point in points if point.start < point.end and split not in found)

    def ends(self) -> dict[str, int]:
        """``SplitPoint.end`` by the id of the split, as events carry it. Where two sources have one of an id, the smaller: an event that is told
        as late twice is one row all the same, one that is not told at all would be lost."""
        found: dict[str, int] = {}
        for key, point in self.splits.items():
            split = key.partition("/")[2]
            found[split] = min(point.end, found.get(split, point.end))
        return found


def split_key(source: str, split: str) -> str:
    """What a split is known by when its source is described otherwise: the kind of source, and its id.

    >>> split_key("files:data/*.csv", "data/a.csv")
    'files/data/a.csv'
    """
    return f"{source.partition(':')[0]}/{split}"


def first_open(window: Window, moment: int) -> int:
    """Start of the first window that ends after ``moment`` (microseconds).

    Raises a user's error for a window that cannot be replayed: sessions begin where the events say.
    """
    method = getattr(window, "first_open", None)
    if method is None:
        raise user_error(f"a {window.describe()} window cannot be replayed from recorded positions: start anew with --fresh")
    return int(method(moment))


def _split_point(values: dict[str, Any]) -> SplitPoint:
    return SplitPoint(**{**values, "facts": [(position, newest) for position, newest in values["facts"]]})
