"""Formats, by the name that job files use."""

from streamgauge.transforms.config import Registry

FORMATS = Registry(
    "formats",
    {
        "json": "streamgauge.transforms.formats.json:Json",
        "csv": "streamgauge.transforms.formats.csv:Csv",
        "arrow": "streamgauge.transforms.formats.arrow:Arrow",
    },
)
