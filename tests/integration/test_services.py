"""Kafka, QuestDB and the stack of both: real servers in temporary folders."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.parse
import urllib.request
from pathlib import Path

import psutil
import pytest

from streamgauge.pipelines.services import ServiceError, stack
from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.process import free_port, free_ports
from streamgauge.pipelines.services.questdb import QuestDbServer

pytestmark = pytest.mark.integration


def family(pid: int) -> list[psutil.Process]:
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


def listening(pid: int) -> set[str]:
    """The addresses that a process and its children listen at."""
    found = [c for p in family(pid) for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return {connection.laddr.ip for connection in found}


def query(url: str, sql: str) -> list[list[object]]:
    with urllib.request.urlopen(f"{url}/exec?{urllib.parse.urlencode({'query': sql})}", timeout=10) as answer:
        return list(json.loads(answer.read()).get("dataset", []))


def test_kafka_keeps_records_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from confluent_kafka import Consumer, Producer

    # No Java but the wheel's.
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with KafkaServer(tmp_path / "kafka", properties={"message.max.bytes": 5000}) as server:
        assert listening(server.pid or 0) == {"127.0.0.1"}
        errors = []
        producer = Producer({"bootstrap.servers": server.brokers, "message.max.bytes": 100_000, "enable.idempotence": True})
        producer.produce("flights", b"small", on_delivery=lambda error, _: errors.append(error))
        assert producer.flush(20) == 0  # a batch of both would be refused as a whole
        producer.produce("flights", os.urandom(9000), on_delivery=lambda error, _: errors.append(error))
        assert producer.flush(20) == 0
        assert [error is None for error in errors].count(True) == 1  # the extra property holds
        processes = family(server.pid or 0)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)

    with KafkaServer(tmp_path / "kafka") as server:
        group = {"group.id": "check", "auto.offset.reset": "earliest"}
        consumer = Consumer({"bootstrap.servers": server.brokers, **group})
        consumer.subscribe(["flights"])
        message = consumer.poll(20)
        assert message is not None and message.value() == b"small"
        consumer.close()


def test_kafka_on_a_taken_port_says_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        server = KafkaServer(tmp_path / "kafka", port)
        with pytest.raises(ServiceError, match=r"(?s)Kafka ended with code 1 .*(in use|bind)"):
            server.start()
        assert not server.running


def test_questdb_upserts_and_keeps_tables(tmp_path: Path) -> None:
    with QuestDbServer(tmp_path / "quest") as server:
        assert listening(server.pid or 0) == {"127.0.0.1"}
        query(server.url, "CREATE TABLE t (ts TIMESTAMP, k SYMBOL, v LONG) TIMESTAMP(ts) PARTITION BY DAY WAL "
                          "DEDUP UPSERT KEYS(ts, k)")  # fmt: skip
        for value in (1, 2):
            body = f"t,k=a v={value}i 1000000000000000000\n".encode()
            with urllib.request.urlopen(urllib.request.Request(f"{server.url}/write", body), timeout=10) as answer:
                assert answer.status == 204
        deadline = time.monotonic() + 20
        while query(server.url, "SELECT k, v FROM t") != [["a", 2]]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with QuestDbServer(tmp_path / "quest") as server:
        assert query(server.url, "SELECT count() FROM t") == [[1]]


def test_stack_is_idempotent_and_notices_dead_servers(tmp_path: Path) -> None:
    ports = dict(zip(("kafka", "questdb"), free_ports(2), strict=True))
    try:
        first = stack.up(["kafka", "questdb"], tmp_path, ports)
        assert [server.state for server in first] == ["running", "running"]
        assert stack.up(["questdb", "kafka"], tmp_path, ports) == first[::-1]
        assert stack.status(tmp_path) == [*first, stack.Server("flink", "stopped")]
        with pytest.raises(ServiceError, match=f"already runs on port {ports['kafka']}"):
            stack.up(["kafka"], tmp_path, {"kafka": free_port()})
        with pytest.raises(ServiceError, match=rf"Port {ports['kafka']}.* is taken by process .*port="):
            stack.up(["kafka"], tmp_path / "other", ports)

        pid = first[1].pid or 0
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
        assert [server.state for server in stack.status(tmp_path)] == ["running", "died", "stopped"]
        again = stack.up(["questdb"], tmp_path, ports)
        assert again[0].state == "running" and again[0].pid != pid

        # A record whose number now belongs to another process (this one) is no server of ours.
        record = tmp_path / "kafka.json"
        kept = record.read_text()
        record.write_text(json.dumps({**json.loads(kept), "pid": os.getpid()}))
        assert stack.status(tmp_path)[0].state == "died"
        record.write_text(kept)
    finally:
        stopped = stack.down(["kafka", "questdb"], tmp_path)
    assert [server.state for server in stopped] == ["stopped", "stopped"]
    assert stack.down(["kafka"], tmp_path) == stopped[:1]
    assert [server.state for server in stack.status(tmp_path)] == ["stopped", "stopped", "stopped"]


def test_stack_knows_its_servers(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="no server 'redis'; expected one of kafka, questdb, flink"):
        stack.up(["redis"], tmp_path)
