"""Reusable PTransforms: read events, aggregate them by window, write results.

>>> from streamgauge.transforms import AggregateWindows, ReadEvents, WriteResults
"""

from streamgauge.transforms.aggregate import AggregateWindows
from streamgauge.transforms.read import ReadEvents
from streamgauge.transforms.write import WriteResults

__all__ = ["AggregateWindows", "ReadEvents", "WriteResults"]
