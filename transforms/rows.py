"""What a table of rows says of itself: key, time and revision, kept in its Arrow schema's metadata.

Sinks read it there, so that a result, a late event and a dead letter are written by the same code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa

_METADATA_KEY = b"streamgauge.rows"


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
    """

    kind: str
    key: tuple[str, ...]
    time: str
    revision: str | None = None
    final: str | None = None
    withdrawn: str | None = None

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
