"""What a worker needs, imported and loaded before it is forked: see worker_pool.py."""

import contextlib
import importlib

import apache_beam.runners.worker.sdk_worker  # noqa: F401

import streamgauge.transforms  # noqa: F401
from streamgauge.transforms.aggregates import AGGREGATES
from streamgauge.transforms.formats import FORMATS
from streamgauge.transforms.formats.compiled import load_numba
from streamgauge.transforms.sinks import SINKS
from streamgauge.transforms.sources import CONNECTORS
from streamgauge.transforms.windows import WINDOWS

for registry in (AGGREGATES, CONNECTORS, FORMATS, SINKS, WINDOWS):
    for name in registry.builtin:
        registry.load(name)
for client in ("confluent_kafka", "pandas", "pyarrow.parquet", "questdb"):
    with contextlib.suppress(ImportError):  # an extra that is not installed
        importlib.import_module(client)
load_numba()
