"""Reusable PTransforms: read events, drop duplicates, aggregate by window, write results.

>>> from streamgauge.transforms import AggregateWindows, Deduplicate, ReadEvents, WriteResults
"""

from streamgauge.transforms.aggregate import AggregateWindows
from streamgauge.transforms.deduplicate import Deduplicate
from streamgauge.transforms.read import ReadEvents
from streamgauge.transforms.write import WriteResults

__all__ = ["AggregateWindows", "Deduplicate", "ReadEvents", "WriteResults"]
