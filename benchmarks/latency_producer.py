"""Produces events to Kafka at a constant rate; the time stamp of each is the moment at which it is produced.

``python -m benchmarks.latency_producer BROKERS TOPIC PARTITIONS RATE SECONDS WARM`` prints one line of JSON when the last event is with the broker.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from typing import Any

PARTITIONS = 4
METRICS, HOSTS = 20, 50
PROBE = "probe"
"""Metric of the marker events: each has a host of its own, so that a row of the result is one event."""
PROBES_PER_SECOND = 100
LINGER_MS = 5
"""Kafka's default since 4.0."""
TICK_SECONDS = 0.001
COUNT_MICROS = 50_000
"""Events are counted in steps of so much event time, for the check of the results; every window is a multiple of it."""
_REGIONS = ("eu", "us", "ap")


def keys() -> list[bytes]:
    """What follows the time stamp in the payloads of ordinary events, one a key."""
    return [
        b'"user": %d, "metric": "m%02d", "value": %.6f, "host": "host-%02d", "region": "%s"}'
        % (10_000 + 7 * metric, metric, (metric + 1) * (host + 1) / 7, host, _REGIONS[host % 3].encode())
        for metric in range(METRICS) for host in range(HOSTS)
    ]  # fmt: skip


def probe(number: int, stamp: int) -> bytes:
    """The payload of a marker event."""
    return b'{"ts": %d, "user": 1, "metric": "%s", "value": 1.0, "host": "p%08d", "region": "eu"}' % (stamp, PROBE.encode(), number)


class Paced:
    """How many events are due, without ever catching up in one burst what a stall of this process left undone: the rest stays to be done tick by tick."""

    def __init__(self, rate: float, began: float) -> None:
        self._rate, self._began = rate, began
        self.sent = 0
        self.behind = 0.0

    def due(self, now: float) -> int:
        """Events to produce at ``now``, seconds; at most those of 20 ticks."""
        count = int((now - self._began) * self._rate) - self.sent
        self.behind = max(self.behind, count / self._rate)
        count = min(count, max(1, int(20 * TICK_SECONDS * self._rate)))
        self.sent += count
        return count


def produce(brokers: str, topic: str, partitions: int, rate: float, seconds: float, warm: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """Events and probes sent, the worst delay behind the schedule (seconds), the broker's delays for probes (milliseconds), and events by ``COUNT_MICROS``.

    The first ``warm`` seconds are not in the delays."""
    from confluent_kafka import Producer

    producer = Producer({
        "bootstrap.servers": brokers, "linger.ms": LINGER_MS, "acks": 1, "queue.buffering.max.messages": 2_000_000, "queue.buffering.max.kbytes": 1 << 20,
    })  # fmt: skip
    chosen = random.Random(seed)
    counting = round((time.time() + warm) * 1e6)
    tails = keys()
    chosen.shuffle(tails)
    share, probes, acknowledged = PROBES_PER_SECOND / rate, 0, []
    counted: Counter[int] = Counter()
    pace = Paced(rate, time.time())
    end = time.time() + seconds
    number = 0

    def known(stamp: int) -> Any:
        return lambda error, message: acknowledged.append(time.time_ns() // 1000 - stamp) if stamp >= counting else None

    while (now := time.time()) < end:
        for _ in range(pace.due(now)):
            stamp = time.time_ns() // 1000
            counted[stamp // COUNT_MICROS] += 1
            # The partition moves on by one more each time that all keys had their turn, so that every key is in every partition.
            partition = (number + number // len(tails)) % partitions
            if chosen.random() < share:
                producer.produce(topic, probe(probes, stamp), partition=partition, on_delivery=known(stamp))
                probes += 1
            else:
                producer.produce(topic, b'{"ts": %d, %b' % (stamp, tails[number % len(tails)]), partition=partition)
            number += 1
        producer.poll(0)
        time.sleep(max(0.0, TICK_SECONDS - (time.time() - now)))
    producer.flush()
    delays = sorted(acknowledged)
    return {
        "sent": number, "probes": probes, "behind": pace.behind, "counted": {str(key): value for key, value in counted.items()},
        "acknowledged_ms": {f"p{share:g}": delays[min(len(delays) - 1, int(len(delays) * share / 100))] / 1000 for share in (50, 99)} if delays else {},
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(produce(sys.argv[1], sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:7]))))
