"""Jars are fetched once, resumed, checked and safe between processes: against a server on 127.0.0.1."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streamgauge.pipelines.services import ServiceError, jars

CONTENT = {f"/org/example/{name}/1.0/{name}-1.0.jar": name.encode() * 50_000 for name in ("alpha", "beta", "gamma")}


class Repository(ThreadingHTTPServer):
    """Serves CONTENT with ranges, and remembers (path, range) of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.content = dict(CONTENT)
        self.ranges = True
        self.cut = 0


class Handler(BaseHTTPRequestHandler):
    server: Repository

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        if self.path not in self.server.content:
            self.send_error(404)
            return
        body = self.server.content[self.path]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.server.cut:  # lose the connection in the middle, once
            self.wfile.write(body[start : start + self.server.cut])
            self.server.cut = 0
            return
        self.wfile.write(body[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    server = Repository()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("STREAMGAUGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STREAMGAUGE_MAVEN", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(jars, "ATTEMPTS", 2)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def write_lock(path: Path, sha256: str | None = None) -> Path:
    lines = ["# a comment", "[demo]"]
    for url, body in CONTENT.items():
        artifact = url.split("/")[3]
        lines.append(f"org.example:{artifact}:1.0 {sha256 or hashlib.sha256(body).hexdigest()} {len(body)}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = jars.lock(write_lock(tmp_path / "jars.lock"))
    monkeypatch.setattr(jars, "lock", lambda: sets)


def test_fetches_once_in_order_and_is_silent_when_cached(repository: Repository, demo: None, capsys: pytest.CaptureFixture[str]) -> None:
    found = jars.fetch("demo")
    assert [path.name for path in found] == ["alpha-1.0.jar", "beta-1.0.jar", "gamma-1.0.jar"]
    assert [path.read_bytes() for path in found] == list(CONTENT.values())
    assert "Fetching demo" in capsys.readouterr().err
    assert jars.fetch("demo") == found
    assert len(repository.requests) == 3
    assert capsys.readouterr().err == ""


def test_resumes_a_part_file(repository: Repository, demo: None) -> None:
    jar = jars.lock()["demo"][0]
    jar.path.parent.mkdir(parents=True)
    jar.path.with_name(jar.name + ".part").write_bytes(CONTENT["/org/example/alpha/1.0/alpha-1.0.jar"][:1000])
    assert jars.download(jar).stat().st_size == jar.size
    assert repository.requests == [("/org/example/alpha/1.0/alpha-1.0.jar", "bytes=1000-")]


def test_goes_on_after_a_lost_connection(repository: Repository, demo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars.time, "sleep", lambda _: None)
    repository.cut = 70_000
    jar = jars.lock()["demo"][0]
    assert jars.download(jar).stat().st_size == jar.size
    assert [asked for _, asked in repository.requests] == [None, "bytes=70000-"]


def test_starts_anew_where_ranges_are_refused(repository: Repository, demo: None) -> None:
    repository.ranges = False
    jar = jars.lock()["demo"][0]
    jar.path.parent.mkdir(parents=True)
    jar.path.with_name(jar.name + ".part").write_bytes(b"x" * 1000)
    assert jars.download(jar).read_bytes() == CONTENT["/org/example/alpha/1.0/alpha-1.0.jar"]


def test_a_stale_part_file_is_dropped(repository: Repository, demo: None) -> None:
    jar = jars.lock()["demo"][0]
    jar.path.parent.mkdir(parents=True)
    jar.path.with_name(jar.name + ".part").write_bytes(b"wrong" * 100)
    assert jars.download(jar).stat().st_size == jar.size
    assert [asked for _, asked in repository.requests] == ["bytes=500-", None]


def test_a_wrong_sum_is_an_error_and_leaves_nothing(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = jars.lock(write_lock(tmp_path / "wrong.lock", "0" * 64))
    monkeypatch.setattr(jars, "lock", lambda: sets)
    with pytest.raises(ServiceError, match=r"SHA-256 .* expects 0{64}\. The file was deleted"):
        jars.fetch("demo", progress=False)
    assert not list((tmp_path / "cache").rglob("alpha*"))


def test_a_missing_jar_names_its_address(repository: Repository, demo: None) -> None:
    repository.content.clear()
    with pytest.raises(ServiceError, match=r"Could not download http://127.*404.*STREAMGAUGE_MAVEN"):
        jars.fetch("demo", progress=False)


def test_an_unknown_set_names_the_known_ones(demo: None) -> None:
    with pytest.raises(ServiceError, match="no jar set 'other'; expected one of demo"):
        jars.fetch("other")


def test_two_processes_download_once(repository: Repository, tmp_path: Path) -> None:
    path = write_lock(tmp_path / "jars.lock")
    code = (
        "import pathlib, sys; from streamgauge.pipelines.services import jars\n"
        "sets = jars.lock(pathlib.Path(sys.argv[1])); jars.lock = lambda: sets\n"
        "print(len(jars.fetch('demo')))"
    )
    command = [sys.executable, "-c", code, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["3", "3"]
    assert sorted(url for url, _ in repository.requests) == sorted(CONTENT)


def test_the_real_lock_file_is_whole() -> None:
    sets = jars.lock(jars.LOCK_FILE)
    assert set(sets) == {"flink", "kafka", "questdb", "ecj", "bench"}
    for locked in sets.values():
        assert locked
        assert len({jar.path for jar in locked}) == len(locked)
        assert all(len(jar.sha256) == 64 and jar.size > 0 for jar in locked)
