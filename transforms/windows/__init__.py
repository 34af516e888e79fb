"""Windows, by the name that job files use."""

from streamgauge.transforms.config import Registry

WINDOWS = Registry(
    "windows",
    {
        "tumbling": "streamgauge.transforms.windows.tumbling:Tumbling",
        "sliding": "streamgauge.transforms.windows.sliding:Sliding",
        "cumulative": "streamgauge.transforms.windows.cumulative:Cumulative",
        "session": "streamgauge.transforms.windows.session:Session",
        "global": "streamgauge.transforms.windows.whole:Global",
    },
)
