"""Class data sharing: what several processes of a server list becomes one archive, which the JVM takes."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from streamgauge.pipelines.services.class_archive import merged
from streamgauge.pipelines.services.class_data import ClassData
from streamgauge.pipelines.services.java import java, run_java
from streamgauge.pipelines.services.patches import rpc_jar


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMGAUGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_lists_are_one_without_what_was_cut_and_what_has_numbers() -> None:
    first = "# a list\njava/lang/Object\nB\nC id: 7 super: 1 source: file:/own.jar\n@lambda-proxy A\nD"
    assert merged([first, "java/lang/Object\nE\n"]) == "# a list\njava/lang/Object\nB\n@lambda-proxy A\nE\n"


def test_two_processes_list_and_the_next_ones_share(tmp_path: Path, cache: Path) -> None:
    jar = tmp_path / "empty.jar"
    zipfile.ZipFile(jar, "w").close()
    shared = ClassData("tiny", [jar])
    for process in ("first", "second"):
        run_java(*shared.flags(process), "-cp", shared.class_path, "-version")
    beside = ClassData("tiny", [jar])  # starts before the archive is there, while another one lists
    assert beside.flags() == [] and beside.writer() is None
    assert len(list((cache / "classes").glob("tiny-*.list.*"))) == 2
    writer = shared.writer()
    assert writer is not None
    subprocess.run(writer, check=True)
    (archive,) = (cache / "classes").iterdir()  # the lists are gone
    assert archive.suffix == ".jsa"
    later = ClassData("tiny", [jar])
    assert later.writer() is None
    # With -Xshare:on Java would not start without it.
    subprocess.run(java(*later.flags(), "-Xshare:on", "-cp", later.class_path, "-version"), check=True, capture_output=True)


def test_nothing_listed_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    shared = ClassData("tiny", [])
    writer = shared.writer()
    assert writer is not None and shared.flags() == [f"-XX:DumpLoadedClassList={writer[4]}.main"]
    subprocess.run(writer, check=True)
    assert list((cache / "classes").iterdir()) == []


def test_flinks_rpc_system_is_unpacked_once(tmp_path: Path, cache: Path) -> None:
    carrier = tmp_path / "flink-rpc-akka-loader-1.jar"
    with zipfile.ZipFile(carrier, "w") as jar:
        jar.writestr("flink-rpc-akka.jar", b"the jar")
    unpacked = rpc_jar([carrier])
    assert unpacked == cache / "patches" / "flink-rpc-akka-loader-1-unpacked.jar" and unpacked.read_bytes() == b"the jar"
    carrier.unlink()
    assert rpc_jar([carrier]) == unpacked
    assert {path.name for path in (cache / "patches").iterdir()} <= {unpacked.name, ".lock"}
