"""State is written without waiting for each answer; whatever Beam does with it otherwise stays."""

from __future__ import annotations

from typing import Any

from apache_beam.coders import BytesCoder
from apache_beam.runners.worker.bundle_processor import FnApiUserStateContext, SynchronousBagRuntimeState, SynchronousSetRuntimeState

from streamgauge.pipelines.services.quick_bundles import _commit


class Flink:
    """Keeps the order of what it is asked and of what somebody waits for."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []

    def clear(self, key: str) -> Any:
        return self._asked("clear", key)

    def extend(self, key: str, coder: Any, elements: Any) -> Any:
        return self._asked("extend", key, sorted(coder.decode(coder.encode(element)) for element in elements))

    def _asked(self, *what: Any) -> Any:
        self.log.append(what)
        log = self.log

        class Answer:
            def get(self) -> None:
                log.append(("answer", *what[:2]))

        return Answer()


def context(**states: Any) -> FnApiUserStateContext:
    made = object.__new__(FnApiUserStateContext)
    made._all_states = states
    return made


def test_everything_is_sent_before_an_answer_is_waited_for() -> None:
    flink = Flink()
    bags = {name: SynchronousBagRuntimeState(flink, name, BytesCoder()) for name in ("read", "added", "cleared", "rewritten")}
    bags["added"].add(b"1")
    bags["added"].add(b"2")
    bags["cleared"].clear()
    bags["rewritten"].add(b"3")
    bags["rewritten"].clear()
    bags["rewritten"].add(b"4")
    _commit(context(**bags))
    sent = [("extend", "added", [b"1", b"2"]), ("clear", "cleared"), ("clear", "rewritten"), ("extend", "rewritten", [b"4"])]
    assert flink.log == [*sent, *(("answer", *what[:2]) for what in sent)]


def test_other_kinds_of_state_are_left_to_beam() -> None:
    flink = Flink()
    kept = SynchronousSetRuntimeState(flink, "set", BytesCoder())
    kept.clear()
    bag = SynchronousBagRuntimeState(flink, "bag", BytesCoder())
    bag.add(b"2")
    _commit(context(bag=bag, kept=kept))
    assert flink.log == [("extend", "bag", [b"2"]), ("clear", "set"), ("answer", "clear", "set"), ("answer", "extend", "bag")]
