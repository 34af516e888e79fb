"""Reusable PTransforms: read events, change them, drop duplicates, aggregate by window, write results.

>>> from streamgauge.transforms import AggregateWindows, Deduplicate, MapEvents, ReadEvents, WriteResults
"""

from streamgauge.transforms.aggregate import AggregateWindows
from streamgauge.transforms.deduplicate import Deduplicate
from streamgauge.transforms.map_events import MapEvents
from streamgauge.transforms.read import ReadEvents
from streamgauge.transforms.write import WriteResults

__all__ = ["AggregateWindows", "Deduplicate", "MapEvents", "ReadEvents", "WriteResults"]
