"""What is said of clusters that a job cannot be submitted to; a server that answers as Flink does stands in for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from streamgauge.pipelines.follow import failing
from streamgauge.pipelines.run_cluster import living_job
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink_rest import FlinkRest
from streamgauge.pipelines.services.flink_submit import WORKERS_KEY, environment_options
from streamgauge.pipelines.services.process import free_port


@pytest.fixture
def answers() -> Iterator[tuple[FlinkRest, dict[str, Any]]]:
    """A REST API that answers with what the dictionary has for a path, else with 404."""
    found: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(found.get(self.path, {"errors": ["Not found"]})).encode()
            self.send_response(200 if self.path in found else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield FlinkRest(f"http://127.0.0.1:{server.server_port}"), found
    server.shutdown()
    server.server_close()


def test_the_workers_address_comes_from_the_clusters_configuration(answers: tuple[FlinkRest, dict[str, Any]]) -> None:
    flink, found = answers
    found |= {"/overview": {"flink-version": "1.19.1"}, "/jobmanager/config": [{"key": WORKERS_KEY, "value": "localhost:50000"}]}
    assert environment_options(flink) == ["--environment_type=EXTERNAL", "--environment_config=localhost:50000"]


@pytest.mark.parametrize(
    ("overview", "config", "message"),
    [
        ({"flink-version": "1.20.0"}, [], "runs Flink 1.20.0; Streamgauge's jobs run on 1.19. Start one with `streamgauge stack up flink`"),
        ({"flink-version": "1.19.3"}, [], "has no key streamgauge.workers: it does not say where its Python workers are"),
    ],
)
def test_other_clusters_are_refused_in_a_line(answers: tuple[FlinkRest, dict[str, Any]], overview: Any, config: Any, message: str) -> None:
    flink, found = answers
    found |= {"/overview": overview, "/jobmanager/config": config}
    with pytest.raises(ServiceError, match=message.replace("`", ".")) as raised:
        environment_options(flink)
    assert len(str(raised.value).splitlines()) == 1


def test_nobody_there_is_told_in_a_line() -> None:
    flink = FlinkRest(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ServiceError, match=f"Flink at {flink.rest_url} did not answer: .*refused"):
        living_job(flink, "m")


def test_a_job_lives_until_flink_says_that_it_has_ended(answers: tuple[FlinkRest, dict[str, Any]]) -> None:
    flink, found = answers
    jobs = [{"jid": "1", "name": "m", "state": "FINISHED"}, {"jid": "2", "name": "n", "state": "RUNNING"}, {"jid": "3", "name": "m", "state": "RESTARTING"}]
    found["/jobs/overview"] = {"jobs": jobs[:2]}
    assert living_job(flink, "m") is None
    found["/jobs/overview"] = {"jobs": jobs}
    assert living_job(flink, "m") == "3"


def test_failing_checkpoints_are_counted_since_the_last_good_one() -> None:
    history = [{"status": status, "failure_message": "no space\nat java"} for status in ("IN_PROGRESS", "FAILED", "FAILED", "COMPLETED", "FAILED")]
    assert failing({"history": history}) == (2, "no space")
    assert failing({"history": [{"status": "FAILED", "failure_message": "Checkpoint Coordinator is suspending."}, *history]}) == (2, "no space")
    assert failing({"history": history[3:]}) == (0, "")
    assert failing({}) == (0, "")


def test_what_a_recovering_job_manager_leaves_out_is_no_end_of_input(answers: tuple[FlinkRest, dict[str, Any]]) -> None:
    flink, found = answers
    found["/jobs/1/plan"] = {"plan": {}}
    assert flink.least_watermark("1") is None
