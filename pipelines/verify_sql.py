"""The answer that a store should hold, computed by DuckDB from raw payloads: nothing here uses our formats or kernels."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from streamgauge.pipelines.verify_input import Raw
from streamgauge.transforms.event_time import MAX_TIME, MIN_TIME, TimeOptions
from streamgauge.transforms.formats.fields import FLOAT_KINDS, NO_NUMBERS, Field, Kind, fields_of

ROWS_A_CHUNK = 50_000
