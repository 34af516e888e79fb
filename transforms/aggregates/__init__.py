"""Aggregates, by the name that job files use."""

from streamgauge.transforms.config import Registry

AGGREGATES = Registry(
    "aggregates",
    {
        "count": "streamgauge.transforms.aggregates.count:Count",
        "sum": "streamgauge.transforms.aggregates.sum:Sum",
        "min": "streamgauge.transforms.aggregates.extremes:Min",
        "max": "streamgauge.transforms.aggregates.extremes:Max",
        "mean": "streamgauge.transforms.aggregates.mean:Mean",
    },
)
