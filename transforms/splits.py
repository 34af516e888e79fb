"""Splits as Beam elements: found at the start, and while the job runs; spread evenly over Flink's subtasks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.io.restriction_trackers import RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Duration, Timestamp

from streamgauge.transforms.hashing import spread_key
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.replay import ReplayPoint
from streamgauge.transforms.sources.base import Connector, SourceError, Split

DISCOVER_EVERY_SECONDS = 10.0
_POLL_SECONDS = 1.0


class SplitElement(bytes):
    """A split as a Beam element: bytes, of a type of its own so that it has a coder of its own.

    Beam's runners in Java name the coder of (element, restriction) after the coder of the element, and of two splittable
    DoFns whose elements share a coder but whose restrictions do not, one gets the restriction coder of the other. Which
    one depends on the order of a protobuf map: one start in a few then fails for ever, without a row.
    """


class SplitElementCoder(coders.Coder):  # type: ignore[misc]
    """The bytes as they are, so that Flink hashes them as it does those of BytesCoder (see ``spread_key``)."""

    def encode(self, value: bytes) -> bytes:
        return bytes(value)

    def decode(self, encoded: bytes) -> SplitElement:
        return SplitElement(encoded)

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return SplitElement


coders.registry.register_coder(SplitElement, SplitElementCoder)


def split_element(index: int, split: Split, *, found_later: bool = False) -> SplitElement:
    """The element of the ``index``-th split: JSON, salted so that Flink spreads the elements evenly."""
    return SplitElement(spread_key(index, lambda salt: json.dumps({"split": asdict(split), "later": found_later, "salt": salt}).encode()))


@lru_cache(maxsize=1024)
def split_of(element: bytes) -> tuple[Split, bool]:
    """The split of an element and whether it was found only while the job ran."""
    values = json.loads(element)
    return Split(**values["split"]), values["later"]


def starting(connector: Connector, splits: list[Split], replay: ReplayPoint | None) -> list[Split]:
    """The splits of a new run, each from where it starts. Raises SourceError when a split is gone whose events a replay needs."""
    if replay is None:
        return splits
    if missing := replay.missing(connector.name, {split.id for split in splits}):
        raise SourceError(f"{connector.name}: {', '.join(missing[:5])} must be read again and is not there any more; start anew with --fresh")
    return [replay.placed(connector.name, split) for split in splits]


class ListSplits(beam.DoFn):  # type: ignore[misc]
    """Emits the element of every split there is."""

    def __init__(self, connector: Connector, replay: ReplayPoint | None = None) -> None:
        self._connector = connector
        self._replay = replay

    def process(self, _: bytes) -> Iterator[SplitElement]:
        for index, split in enumerate(starting(self._connector, self._connector.splits(), self._replay)):
            yield split_element(index, split)


class _KnownTracker(RestrictionTracker):  # type: ignore[misc]
    """The restriction is a JSON list of the split ids already emitted; a claim replaces it; None ends it."""

    def __init__(self, known: str) -> None:
        self._known = known
        self._claimed: str | None = known
        self._split = False

    def current_restriction(self) -> str:
        return self._known

    def try_claim(self, known: str | None) -> bool:
        if self._split:
            return False
        self._claimed = known
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[str, str] | None:
        if fraction_of_remainder != 0 or self._claimed is None or self._split:
            return None
        self._split = True
        self._known, residual = self._claimed, self._claimed
        return self._known, residual

    def check_done(self) -> None:
        if not self._split and self._claimed is not None:
            raise ValueError("the search for new splits stopped before its end")

    def is_bounded(self) -> bool:
        return False


class _KnownProvider(RestrictionProvider):  # type: ignore[misc]
    def initial_restriction(self, element: bytes) -> str:
        return "[]"

    def create_tracker(self, restriction: str) -> _KnownTracker:
        return _KnownTracker(restriction)

    def restriction_size(self, element: bytes, restriction: str) -> int:
        return 1

    def truncate(self, element: bytes, restriction: str) -> None:
        return None


class DiscoverSplits(beam.DoFn):  # type: ignore[misc]
    """Emits every split once, then looks for new ones every ten seconds until the job drains.

    Its watermark is the end of the global window from the start: it never holds others back.
    """

    def __init__(self, connector: Connector, record_folder: str | None, replay: ReplayPoint | None = None) -> None:
        self._connector = connector
        self._replay = replay
        self._record = JobRecord(record_folder)
        self._looked = float("-inf")

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        _: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(_KnownProvider()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[SplitElement]:
        known: list[str] = json.loads(tracker.current_restriction())
        if self._record.draining():
            tracker.try_claim(None)
            return
        if not known or time.monotonic() - self._looked >= DISCOVER_EVERY_SECONDS:
            self._looked = time.monotonic()
            new = [split for split in self._look(known) if split.id not in known]
            if new:
                if not tracker.try_claim(json.dumps(known + [split.id for split in new])):
                    return
                for index, split in enumerate(new, start=len(known)):
                    yield split_element(index, split, found_later=bool(known))
        end: Timestamp = GlobalWindow().max_timestamp() - Duration(1)
        watermark.set_watermark(end)
        tracker.defer_remainder(Duration(_POLL_SECONDS))

    def _look(self, known: list[str]) -> list[Split]:
        """A source that is away for a while is asked again later; at the start it is the user's mistake."""
        try:
            return starting(self._connector, self._connector.splits(known), self._replay)
        except SourceError:
            if not known:
                raise
            return []
