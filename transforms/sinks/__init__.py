"""Sinks, by the name that job files use."""

from streamgauge.transforms.config import Registry

SINKS = Registry(
    "sinks",
    {
        "sqlite": "streamgauge.transforms.sinks.sqlite:Sqlite",
        "parquet": "streamgauge.transforms.sinks.parquet:Parquet",
        "questdb": "streamgauge.transforms.sinks.questdb:QuestDb",
        "stdout": "streamgauge.transforms.sinks.stdout:Stdout",
    },
)
