"""Raw records read again by plain means, for ``streamgauge verify``: never through our connectors where there is another way."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from streamgauge.transforms.sources.base import SourceError, Split

PIECE_BYTES = 64 << 10
FETCH_RECORDS = 10_000
ANSWER_SECONDS = 30.0
"""How long Kafka may send nothing before reading is given up."""

_CALL_SECONDS = 1.0


@dataclass(frozen=True)
class SplitRange:
    """What a job has read of a split: positions ``start`` to ``position`` (not included); ``watermark`` in microseconds since the epoch."""

    source: str
    split: str
    start: int
    position: int
    done: bool
    watermark: int | None


class Raw(NamedTuple):
    """A record: its payload (None: it has none), its time stamp in microseconds where the source has one, and why the source
    itself cannot give it, if so."""

    position: int
    payload: bytes | None
    stamp: int | None = None
    reject: str | None = None


def records(source: Any, what: SplitRange) -> Iterator[Raw]:
    """The records of a split. ``source`` is the Choice of a ReadEvents. Raises SourceError."""
    if what.position <= what.start:
        return iter(())
    reader = {"files": _file, "kafka": _kafka}.get(source.name, _connector)
    return reader(source, what)


def plain(source: Any) -> bool:
    """Whether ``records`` does without the source's own connector."""
    return source.name in ("files", "kafka")


def _file(source: Any, what: SplitRange) -> Iterator[Raw]:
    """Lines with the offset of their first byte in the uncompressed file. Blank ones do not count."""
    position, limit = 0, source.options.max_line
    for line, damage in _lines(what.split):
        if position >= what.position:
            return
        bare = line.removesuffix(b"\n")
        record = bare.removesuffix(b"\r")
        if position >= what.start:
            if damage:
                yield Raw(position, record, None, "corrupt")
            elif len(bare) > limit:
                yield Raw(position, None, None, "too_large")
            elif record:
                yield Raw(position, record)
        position += len(line)


def _lines(path: str) -> Iterator[tuple[bytes, str | None]]:
    """Lines with their ends, and for the last one what is wrong with the file, if it is damaged there."""
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise SourceError(f"cannot read {path} again: {error.strerror}; start verify in the folder in which the job was run") from None
    with file:
        suffix = Path(path).suffix
        if suffix not in (".gz", ".zst"):
            for line in file:
                yield line, None
            return
        rest, damage = b"", None
        for piece in _gunzip(file) if suffix == ".gz" else _unzstd(file):
            if isinstance(piece, str):
                damage = piece
                break
            *complete, rest = (rest + piece).split(b"\n")
            for line in complete:
                yield line + b"\n", None
        if rest or damage:
            yield rest, damage


def _gunzip(file: Any) -> Iterator[bytes | str]:
    """Decompressed pieces; a string, the last, says what is damaged."""
    inflate, fresh = zlib.decompressobj(wbits=31), True
    while data := file.read(PIECE_BYTES):
        while data:
            before = inflate.copy()
            try:
                piece = inflate.decompress(data)
            except zlib.error as error:
                # A call that fails gives nothing: byte by byte it gives what precedes the damage.
                for byte in data:
                    try:
                        yield before.decompress(bytes([byte]))
                    except zlib.error:
                        break
                yield str(error)
                return
            fresh = False
            yield piece
            data = b""
            if inflate.eof:
                data = inflate.unused_data.lstrip(b"\0")
                inflate, fresh = zlib.decompressobj(wbits=31), True
    if not fresh:
        yield str(EOFError("the file ends within its data"))


def _unzstd(file: Any) -> Iterator[bytes | str]:
    try:
        import zstandard
    except ImportError:
        raise SourceError("verify needs zstandard to read .zst files; run: pip install 'streamgauge[verify]'") from None
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_size=1 << 10, read_across_frames=True)
        while piece := reader.read1(PIECE_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        yield str(error)


def _kafka(source: Any, what: SplitRange) -> Iterator[Raw]:
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    options = source.options
    topic, _, partition = what.split.rpartition("-")
    consumer = Consumer({
        **options.client, "bootstrap.servers": options.brokers, "group.id": "streamgauge-verify", "enable.auto.commit": False,
        "auto.offset.reset": "error", "enable.partition.eof": True,
    })  # fmt: skip
    try:
        consumer.assign([TopicPartition(topic, int(partition), what.start)])
        heard = time.monotonic()
        while True:
            messages = consumer.consume(FETCH_RECORDS, timeout=_CALL_SECONDS)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > ANSWER_SECONDS:
                raise SourceError(f"no record of {what.split} from {options.brokers} for {ANSWER_SECONDS:.0f} s, though it was read to offset {what.position}")
            for message in messages:
                error = message.error()
                if error is None:
                    if message.offset() >= what.position:
                        return
                    yield _kafka_record(message, options.max_bytes)
                elif error.code() == KafkaError._PARTITION_EOF:
                    return
                elif error.code() == KafkaError._AUTO_OFFSET_RESET or error.fatal():
                    raise SourceError(f"{what.split} cannot be read again from offset {what.start}: {error.str()}")
            if consumer.position([TopicPartition(topic, int(partition))])[0].offset >= what.position:
                return
    finally:
        consumer.close()


def _kafka_record(message: Any, max_bytes: int) -> Raw:
    kind, milliseconds = message.timestamp()
    payload = message.value()
    reject = "too_large" if payload is not None and len(payload) > max_bytes else None
    return Raw(message.offset(), payload, milliseconds * 1000 if kind else None, reject)


def _connector(source: Any, what: SplitRange) -> Iterator[Raw]:
    """By the connector itself: a generator's events are a function of its options, there is no other way to them."""
    reader = source.create().open(Split(what.split, what.start, what.position), what.start)
    try:
        position = what.start
        while position < what.position:
            batch = reader.read(FETCH_RECORDS, PIECE_BYTES << 8, _CALL_SECONDS)
            stamps = batch.timestamps
            for index, (at, payload) in enumerate(zip(batch.positions.tolist(), batch.payloads.to_pylist(), strict=True)):
                if at < what.position:
                    if payload is not None and batch.newline_terminated:
                        payload = payload[:-1]
                    yield Raw(at, payload, None if stamps is None or stamps[index] < 0 else int(stamps[index]))
            for at, kind, _, payload in batch.errors:
                yield Raw(at, payload, None, kind)
            if batch.done or (batch.caught_up and not len(batch)):
                return
            position = batch.next_position
    finally:
        reader.close()


