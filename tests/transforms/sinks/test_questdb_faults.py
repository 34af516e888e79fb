"""The QuestDB sink behind a server that fails: whatever is cut, lost or repeated, the view ends up as the oracle says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.config import Choice
from streamgauge.transforms.sinks import SINKS, questdb, questdb_sql, rows_util
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.questdb import QuestDb, QuestDbOptions
from streamgauge.transforms.write import _WriteDoFn
from tests.examples import examples
from tests.transforms.sinks import cases, faults
from tests.transforms.sinks.fake_questdb import FakeQuestDb
from tests.transforms.sinks.faults import FaultyServer


def to(url: str) -> Choice:
    return Choice(SINKS, "questdb", QuestDbOptions(url=url, table="delay"))


def opened(url: str) -> QuestDb:
    sink: QuestDb = to(url).create()
    sink.open(cases.SCHEMA, cases.ROWS)
    return sink


def impatient(monkeypatch: pytest.MonkeyPatch, tries: float = 0.05, request: float = 0.4) -> None:
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", tries)
    monkeypatch.setattr(questdb_sql, "REQUEST_SECONDS", request)
    monkeypatch.setattr(questdb, "_CLIENT_SECONDS", request / 2)


@pytest.mark.slow
@settings(max_examples=examples(2), deadline=None)
@given(st.integers(0, 2**32))
def test_the_view_is_right_whatever_fails(seed: int) -> None:
    random = Random(seed)
    bundles = faults.job(random, poison={"label": "poison"})
    store, broken = FakeQuestDb(cases.schema_of(bundles[0])), threading.Event()
    quick = [kind for kind in FaultyServer.KINDS if not kind.startswith("silent")]
    kinds = [*quick, *quick, "silent after"]
    with FaultyServer(store.take, lambda path: random.choice(kinds) if broken.is_set() else "ok") as server:

        @contextmanager
        def trouble(worker: _WriteDoFn) -> Iterator[None]:
            broken.set()
            with pytest.MonkeyPatch.context() as monkeypatch:
                impatient(monkeypatch)
                try:
                    yield
                finally:
                    broken.clear()

        letters, _ = faults.drive(to(server.url), bundles, random, trouble)
    good = cases.stored([[row for row in bundle if row["label"] != "poison"] for bundle in bundles])
    assert store.shown() == {(row["window_start"], row["origin"]): (row["count"], row["revision"], row["final"]) for row in good}
    faults.same_letters(letters, [[row for row in bundle if row["label"] == "poison"] for bundle in bundles])


@pytest.mark.parametrize("fault", [kind for kind in FaultyServer.KINDS if kind != "ok"])
def test_one_fault_is_waited_out_and_a_lasting_one_is_named(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    impatient(monkeypatch, tries=20)
    store, rows = FakeQuestDb(), cases.to_table([cases.result(hour=h) for h in range(4)])
    coming = [fault]
    with FaultyServer(store.take, lambda path: coming.pop() if coming and path.startswith("/write") else "ok") as server:
        assert opened(server.url).write(rows) == []
    assert len(store.rows) == 4
    impatient(monkeypatch)
    lasting = ["ok"]
    with FaultyServer(store.take, lambda path: lasting[0]) as server:
        sink = opened(server.url)
        lasting[0] = fault
        with pytest.raises(SinkError, match=r"^questdb:127\.0\.0\.1:\d+/delay: [^\n]*, tried for [\d.]+ s[^\n]*$"):
            sink.write(rows)
        with pytest.raises(SinkError, match=r"^questdb:127\.0\.0\.1:\d+/delay: no answer from QuestDB, tried for [\d.]+ s: [^\n]*$"):
            opened(server.url)


def test_a_server_that_accepts_and_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, tries=0.3, request=0.6)
    store, fault = FakeQuestDb(), ["ok"]
    with FaultyServer(store.take, lambda path: fault[0]) as server:
        sink = opened(server.url)
        fault[0] = "silent"
        began = time.monotonic()
        with pytest.raises(SinkError):
            sink.write(cases.to_table([cases.result()]))
        # A bound on what the sink may take, with room for a machine that is busy: without time-outs it would be the server's 20 s.
        assert time.monotonic() - began < 10


def test_a_request_is_sent_again_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's buffer outlives a failed request: rows must come neither twice in one nor be lost."""
    store, bodies = FakeQuestDb(), []
    kinds = ["ok", "cut after", "503 after"]

    def take(method: str, path: str, body: bytes) -> faults.Answer:
        if path.startswith("/write"):
            bodies.append(body)
        return store.take(method, path, body)

    with FaultyServer(take, lambda path: kinds.pop() if path.startswith("/write") else "ok") as server:
        assert opened(server.url).write(cases.to_table([cases.result(hour=h) for h in range(4)])) == []
    assert len(bodies) == 3 and len(set(bodies)) == 1 and len(list(faults.lines(bodies[0]))) == 4


def test_poison_rows_cost_no_other() -> None:
    store = FakeQuestDb()
    rows = [cases.result(hour=h, label="poison" if h in (5, 6, 40) else None) for h in range(64)]
    early = [cases.result(origin="early") | {"window_start": -1}, cases.result(gate=-(2**63))]
    with FaultyServer(store.take, lambda path: "ok") as server:
        rejected = opened(server.url).write(cases.to_table([*early, *rows]))
    assert [row for part in rejected for row in cases.plain(part.rows)] == [*early, rows[5], rows[6], rows[40]]
    assert [part.error_type for part in rejected] == ["out_of_range", "refused", "refused", "refused"]
    assert "cast error" in rejected[1].reason and "its time" in rejected[0].reason
    assert len(store.rows) == 61
    assert store.requests < 40


def test_many_megabytes_go_in_several_requests_and_a_huge_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questdb, "_REQUEST_BYTES", 100_000)
    monkeypatch.setattr(questdb, "_LARGEST_BYTES", 150_000)
    store = FakeQuestDb()
    rows = [cases.result(hour=h, label="x" * (200_000 if h == 3 else 20_000)) for h in range(20)]
    with FaultyServer(store.take, lambda path: "ok") as server:
        (rejected,) = opened(server.url).write(cases.to_table(rows))
    assert cases.plain(rejected.rows) == [rows[3]] and rejected.error_type == "too_large"
    assert len(store.rows) == 19 and store.requests > 3


def test_a_wrong_password_fails_at_once() -> None:
    store, denied = FakeQuestDb(), ["ok"]
    with FaultyServer(store.take, lambda path: denied[0]) as server:
        sink = opened(server.url)
        denied[0] = "401"
        with pytest.raises(SinkError, match=r"authentication error.*tried for [\d.]+ s"):
            sink.write(cases.to_table([cases.result()]))
