"""What a table of rows says of itself: key, time and revision, kept in its Arrow schema's metadata.

Sinks read it there, so that a result, a late event and a dead letter are written by the same code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa

_METADATA_KEY = b"streamgauge.rows"

CUT = 2**48
"""Added to the revision of a session that is part of a longer one, which was cut: so it replaces all that was told before that was known."""


@dataclass(frozen=True)
class RowSpec:
    """Natural key and special columns of a table.

    Attributes:
        kind: ``results``, ``late`` or ``dead_letters``.
        key: columns that identify a row; a later row with an equal key replaces the earlier one. Null is a value of its own.
        time: the timestamp[us, UTC] column by which stores partition or order.
        revision: int64 column; a row replaces a stored one of the same key only if its revision is not smaller. None: last write wins.
        final: boolean column; with equal revisions a final row is never replaced by one that is not. None: there is none.
        withdrawn: boolean column; such a row says that the stored one of its key holds no more, and replaces it by the same rule: it stays as a
            mark, so that an old writer that wakes up cannot put the row back. Readers do not see it. None: rows are never withdrawn.
        until: timestamp column; with it a row stands for the stretch from ``time`` to ``until``, and those of one key (but for the time) do not overlap:
            of two that do, the one that starts later does not hold if its revision is smaller. So what an attempt wrote that was rolled back is not
            seen, though nothing withdraws it. Of rows with ``revision`` and ``withdrawn``. None: rows may overlap.
    """

    kind: str
    key: tuple[str, ...]
    time: str
    revision: str | None = None
    final: str | None = None
    withdrawn: str | None = None
    until: str | None = None

    def attach(self, schema: pa.Schema) -> pa.Schema:
        """The schema with this description in its metadata."""
        return schema.with_metadata({_METADATA_KEY: json.dumps(asdict(self))})

    @classmethod
    def of(cls, schema: pa.Schema) -> RowSpec:
        """Raises ValueError when the schema carries no description."""
        text = (schema.metadata or {}).get(_METADATA_KEY)
        if text is None:
            raise ValueError(f"these rows do not say what their key is (columns {', '.join(schema.names)}): WriteResults takes results, late events and dead letters")
        values = json.loads(text)
        return cls(**{**values, "key": tuple(values["key"])})
