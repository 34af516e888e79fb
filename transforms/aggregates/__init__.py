"""Aggregates, by the name that job files use."""

from streamgauge.transforms.config import Registry

AGGREGATES = Registry(
    "aggregates",
    {
        "count": "streamgauge.transforms.aggregates.count:Count",
        "sum": "streamgauge.transforms.aggregates.sum:Sum",
        "min": "streamgauge.transforms.aggregates.extremes:Min",
        "max": "streamgauge.transforms.aggregates.extremes:Max",
        "first": "streamgauge.transforms.aggregates.picks:First",
        "last": "streamgauge.transforms.aggregates.picks:Last",
        "argmin": "streamgauge.transforms.aggregates.picks:ArgMin",
        "argmax": "streamgauge.transforms.aggregates.picks:ArgMax",
        "rate": "streamgauge.transforms.aggregates.rate:Rate",
        "increase": "streamgauge.transforms.aggregates.rate:Increase",
        "ratio": "streamgauge.transforms.aggregates.ratio:Ratio",
        "any": "streamgauge.transforms.aggregates.truth:Any",
        "all": "streamgauge.transforms.aggregates.truth:All",
        "collect": "streamgauge.transforms.aggregates.collect:Collect",
        "distinct": "streamgauge.transforms.aggregates.distinct:Distinct",
        "mean": "streamgauge.transforms.aggregates.mean:Mean",
        "quantile": "streamgauge.transforms.aggregates.quantile:Quantile",
        "histogram": "streamgauge.transforms.aggregates.histogram:Histogram",
        "exponential_histogram": "streamgauge.transforms.aggregates.exponential_histogram:ExponentialHistogram",
        "mode": "streamgauge.transforms.aggregates.mode:Mode",
        "top": "streamgauge.transforms.aggregates.top:Top",
        "variance": "streamgauge.transforms.aggregates.variance:Variance",
        "stddev": "streamgauge.transforms.aggregates.variance:Stddev",
        "covariance": "streamgauge.transforms.aggregates.covariance:Covariance",
        "correlation": "streamgauge.transforms.aggregates.covariance:Correlation",
        "ewm": "streamgauge.transforms.aggregates.weighted_mean:WeightedMean",
    },
)
