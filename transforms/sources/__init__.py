"""Connectors, by the name that job files use."""

from streamgauge.transforms.config import Registry

CONNECTORS = Registry(
    "sources",
    {
        "kafka": "streamgauge.transforms.sources.kafka:Kafka",
        "files": "streamgauge.transforms.sources.files:Files",
        "generator": "streamgauge.transforms.sources.generator:Generator",
    },
)
