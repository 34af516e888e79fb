"""Where partitions end, by the broker's word.

Asked on a connection of its own: behind a request for records, which the broker holds while there are none, the answer would take half a second.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from streamgauge.transforms.sources.kafka_client import log, require

if TYPE_CHECKING:
    from streamgauge.transforms.sources.kafka import KafkaOptions

ASK_EVERY_SECONDS = 0.1
ANSWER_SECONDS = 1.0
"""An answer that takes longer is none."""
PATIENCE_SECONDS = 10.0
"""A client that has no answer for so long is replaced: one of librdkafka's may lose its brokers for good (docs/pain-points.md)."""


class EndOffsets:
    """The ends of a topic's partitions. Nobody waits: a question is on its way while the last answer is told."""

    def __init__(self, options: KafkaOptions) -> None:
        from confluent_kafka import admin

        self._topic = options.topic
        settings = options.settings()
        # An admin client warns of settings that are for consumers.
        self._connect = partial(admin.AdminClient, {**settings, "log_level": 0}, logger=None)
        self._client = self._connect()
        committed = settings["isolation.level"] == "read_committed"
        levels = require().IsolationLevel
        self._level = levels.READ_COMMITTED if committed else levels.READ_UNCOMMITTED
        self._latest = admin.OffsetSpec.latest()
        self._waiting_since: float | None = None
        self._wanted: set[int] = set()
        self._asked = float("-inf")
        self._futures: dict[Any, Future[Any]] = {}
        self._known: dict[int, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def of(self, partition: int) -> tuple[int, float]:
        """The end that was found last and when it was asked for (``time.monotonic``); (-1, minus infinity) before the first answer. Asks again."""
        with self._lock:
            self._collect()
            self._wanted.add(partition)
            now = time.monotonic()
            if not self._futures and now - self._asked >= ASK_EVERY_SECONDS:
                self._ask(now)
            return self._known.get(partition, (-1, float("-inf")))

    def _ask(self, now: float) -> None:
        kafka = require()
        if self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since > PATIENCE_SECONDS:
            log.warning("no answer for %.0f s about where the partitions of %s end: until there is one, none of them counts as idle", PATIENCE_SECONDS, self._topic)
            self._client, self._waiting_since = self._connect(), now
        self._client.poll(0)
        self._asked = now
        wanted = {kafka.TopicPartition(self._topic, partition): self._latest for partition in self._wanted}
        self._wanted.clear()
        try:
            self._futures = self._client.list_offsets(wanted, isolation_level=self._level, request_timeout=ANSWER_SECONDS)
        except kafka.KafkaException:
            self._futures = {}

    def _collect(self) -> None:
        for place in [place for place, future in self._futures.items() if future.done()]:
            future = self._futures.pop(place)
            if future.exception() is None:
                self._known[place.partition] = future.result().offset, self._asked
                self._waiting_since = None


_OPEN: WeakValueDictionary[str, EndOffsets] = WeakValueDictionary()
_OPENING = threading.Lock()


def end_offsets(options: KafkaOptions) -> EndOffsets:
    """That of the process; it lives as long as somebody holds it."""
    key = options.model_dump_json()
    with _OPENING:
        found = _OPEN.get(key)
        if found is None:
            found = _OPEN[key] = EndOffsets(options)
        return found
