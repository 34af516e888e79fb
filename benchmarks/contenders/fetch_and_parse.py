"""What nobody can do without: the records fetched and parsed, by the fastest means in Python, and thrown away. A yardstick, no job.

librdkafka without a Python object a message, and our parser, which takes a third of the time that Polars' needs. One process, two threads. Its
CPU time is that of fetching and parsing alone: what importing takes is not in it.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.topic import FIELDS, PARTITIONS, TOPIC
from streamgauge.transforms.formats.json import Json
from streamgauge.transforms.read import MAX_BATCH_BYTES, MAX_BATCH_EVENTS
from streamgauge.transforms.sources.kafka import Kafka

THREADS = 2


def main(brokers: str, events: int) -> None:
    connector = Kafka(Kafka.Options(brokers=brokers, topic=TOPIC, stop=dict.fromkeys(range(PARTITIONS), events // PARTITIONS)))

    def read(split: object) -> int:
        reader, parser, parsed, done = connector.open(split, split.start), Json(Json.Options(schema=FIELDS)), 0, False  # type: ignore[attr-defined,arg-type]
        while not done:
            raw = reader.read(MAX_BATCH_EVENTS, MAX_BATCH_BYTES, 1.0)
            parsed += parser.parse(raw).events.num_rows
            done = raw.done
        reader.close()
        return parsed

    splits = connector.splits()
    Json(Json.Options(schema=FIELDS))  # what is compiled or loaded once
    began, used = time.time(), time.process_time()
    with ThreadPoolExecutor(THREADS) as threads:
        parsed = sum(threads.map(read, splits))
    if parsed != events:
        raise SystemExit(f"{parsed} events were parsed, {events} are there")
    print(json.dumps({"seconds": time.time() - began, "cpu_s": time.process_time() - used}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[3]))
