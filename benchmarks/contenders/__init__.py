"""What runs beside each other on one workload. A contender is a module with ``main(brokers, database, events, ...)`` that prints its seconds as JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """How a contender is run.

    Attributes:
        module: within this package.
        about: what it is, in the tables of the documentation.
        share: of the events that it gets: one that is 20 times slower need not run 20 times longer.
        more: further arguments.
        answers: False for a part of the work, which has no rows to compare.
    """

    module: str
    about: str
    share: float = 1.0
    more: tuple[str, ...] = ()
    answers: bool = True


CONTENDERS = {
    "streamgauge": Contender("streamgauge", "embedded Flink, checkpoints every second"),
    "streamgauge-2": Contender("streamgauge", "the same with parallelism 2", more=("--parallelism=2",)),
    "fetch-and-parse": Contender("fetch_and_parse", "no job: the same records fetched and parsed by the fastest means in Python, in one process", answers=False),
    "python-loop": Contender("python_loop", "confluent-kafka, orjson, a dictionary; no state that survives it"),
    "python-loop-2": Contender("python_loop", "two processes of it", more=("2",)),
    "flink-sql": Contender("flink_sql", "Flink's own SQL in Java, with the same parallelism (1), checkpoints and disorder"),
    "flink-sql-2": Contender("flink_sql", "the same with parallelism 2", more=("2",)),
    "beam-per-element": Contender("beam_per_element", "the same job on the same Flink, an element is an event", share=0.05),
}
