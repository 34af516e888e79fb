"""The restriction of a split: the range of positions still to read, kept in the runner's checkpoint."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from apache_beam import coders
from apache_beam.io.restriction_trackers import RestrictionProgress, RestrictionTracker

UNBOUNDED: Final = 2**63 - 1
FINISHED: Final = UNBOUNDED
"""Claiming FINISHED ends the split wherever it is."""

_VERSION: Final = 1
_LAYOUT: Final = struct.Struct("<Bqq")


class Positions(NamedTuple):
    """Positions ``[position, end)`` of one split; ``end`` is UNBOUNDED where the split grows."""

    position: int
    end: int


class PositionsCoder(coders.Coder):  # type: ignore[misc]
    """17 bytes: version, position, end."""

    def encode(self, value: Positions) -> bytes:
        return _LAYOUT.pack(_VERSION, *value)

    def decode(self, encoded: bytes) -> Positions:
        version, position, end = _LAYOUT.unpack(encoded)
        if version != _VERSION:
            raise ValueError(f"read positions of version {version} in the checkpoint, this release reads version {_VERSION}: start anew with --fresh")
        return Positions(position, end)

    def is_deterministic(self) -> bool:
        return True


class PositionsTracker(RestrictionTracker):  # type: ignore[misc]
    """Claims are of the position *after* a batch, made before the batch is emitted.

    It splits only at the claim (fraction 0): a split is never read by two workers.
    """

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self._claimed = positions.position
        self._stopped = False

    def current_restriction(self) -> Positions:
        return self._positions

    def try_claim(self, next_position: int) -> bool:
        if self._stopped:
            return False
        if next_position < self._claimed:
            raise ValueError(f"position {next_position} claimed after {self._claimed}")
        self._claimed = next_position
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Positions, Positions] | None:
        if fraction_of_remainder != 0 or self._stopped or self._claimed >= self._positions.end:
            return None
        self._stopped = True
        residual = Positions(self._claimed, self._positions.end)
        self._positions = Positions(self._positions.position, self._claimed)
        return self._positions, residual

    def check_done(self) -> None:
        if self._claimed < self._positions.end:
            raise ValueError(f"reading stopped at {self._claimed} before the end {self._positions.end}")

    def current_progress(self) -> RestrictionProgress:
        done = self._claimed - self._positions.position
        return RestrictionProgress(completed=done, remaining=max(self._positions.end - self._claimed, 0))

    def is_bounded(self) -> bool:
        return self._positions.end != UNBOUNDED
