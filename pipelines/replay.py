"""Plays lines back as a live stream: appended to a file that a job follows, or produced to a Kafka topic.

A process of its own (``python -m streamgauge.pipelines.replay``), so that the job's process does not pace it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from streamgauge.pipelines.flights import PARTITIONS, Line, kafka_phases, write_events

STEP_SECONDS = 0.05


def paced(lines: Iterable[Line], rate: float, put: Callable[[Line], None], flush: Callable[[], None]) -> None:
    """Puts ``rate`` lines a second, in steps of 50 ms."""
    began = time.monotonic()
    for sent, line in enumerate(lines, start=1):
        put(line)
        if sent % max(int(rate * STEP_SECONDS), 1) == 0:
            flush()
            time.sleep(max(began + sent / rate - time.monotonic(), 0))
    flush()


def to_file(lines: Iterable[Line], rate: float, path: Path) -> None:
    """Appends the lines to ``path``, which exists from the start."""
    with path.open("ab") as file:
        paced(lines, rate, lambda line: _ignore(file.write(line.data + b"\n")), file.flush)


def to_kafka(lines: list[Line], rate: float, brokers: str, topic: str) -> None:
    """Produces the lines to four partitions: one always empty, one that pauses and then brings what it held back."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 5, "enable.idempotence": True})
    partition_of: dict[int, int] = {}

    def produce(line: Line) -> None:
        producer.produce(topic, line.data, partition=partition_of[id(line)])
        producer.poll(0)

    for phase in kafka_phases(lines):
        partition_of.update({id(line): partition for partition, dealt in enumerate(phase) for line in dealt})
        paced(_interleaved(phase), rate, produce, lambda: _ignore(producer.flush()))


def _interleaved(phase: tuple[list[Line], ...]) -> Iterator[Line]:
    """One of each partition in turn."""
    longest = max(len(phase[partition]) for partition in range(PARTITIONS))
    for row in range(longest):
        for lines in phase:
            if row < len(lines):
                yield lines[row]


def _ignore(_: object) -> None:
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Plays the flights data set back as a live stream.")
    parser.add_argument("input", type=Path, help="Folder of the data set; made if it is not there.")
    parser.add_argument("--rate", type=float, default=20_000, help="Lines a second.")
    parser.add_argument("--file", type=Path, help="Append to this file.")
    parser.add_argument("--brokers", help="Produce to Kafka.")
    parser.add_argument("--topic", default="flights")
    options = parser.parse_args()
    flights = write_events(options.input)
    if options.file is not None:
        to_file(flights.lines(), options.rate, options.file)
    else:
        to_kafka(list(flights.lines()), options.rate, options.brokers, options.topic)


if __name__ == "__main__":
    main()
