"""Jars by lock file: fetched once, checked by SHA-256, cached.

`jars.lock` names every jar of a set by its Maven coordinates, SHA-256 and size. Neither Maven nor a
system Java is needed. The address of the repository comes from Beam (`JavaJarServer`), or from the
environment variable STREAMGAUGE_MAVEN (for a mirror, for instance).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from streamgauge.pipelines.services.cache import cache_folder, locked
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.progress import Progress

LOCK_FILE = Path(__file__).with_name("jars.lock")
THREADS = 8
ATTEMPTS = 4
TIMEOUT_S = 60.0
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Jar:
    """One line of the lock file. `size` in bytes."""

    group: str
    artifact: str
    version: str
    classifier: str | None
    sha256: str
    size: int

    @property
    def name(self) -> str:
        return "-".join(filter(None, [self.artifact, self.version, self.classifier])) + ".jar"

    @property
    def path(self) -> Path:
        """Where the jar is (or will be) in the cache."""
        return cache_folder() / "jars" / self.group / self.name

    def cached(self) -> bool:
        """Whether the cache has it. Sums are checked on download; here the size has to do."""
        return self.path.is_file() and self.path.stat().st_size == self.size

    def url(self) -> str:
        from apache_beam.utils.subprocess_server import JavaJarServer

        base = os.environ.get("STREAMGAUGE_MAVEN", JavaJarServer.MAVEN_CENTRAL_REPOSITORY).rstrip("/")
        return str(JavaJarServer.path_to_maven_jar(self.artifact, self.group, self.version, repository=base, classifier=self.classifier))


@lru_cache(maxsize=4)
def lock(path: Path = LOCK_FILE) -> dict[str, list[Jar]]:
    """The sets of a lock file, each in class path order."""
    sets: dict[str, list[Jar]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            jars = sets.setdefault(line.strip("[] "), [])
        elif line.strip() and not line.startswith("#"):
            coordinate, sha256, size = line.split()
            group, artifact, version, *classifier = coordinate.split(":")
            jars.append(Jar(group, artifact, version, classifier[0] if classifier else None, sha256, int(size)))
    return sets


def version_of(set_name: str, artifact: str) -> str:
    """The locked version of one artifact of a set."""
    return next(j.version for j in lock()[set_name] if j.artifact == artifact)


def fetch(set_name: str, progress: bool = True) -> list[Path]:
    """The jars of a set in class path order, downloaded first where the cache lacks them.

    Several processes may ask at once: one downloads, the others wait. Says nothing when all is cached.

    Args:
        set_name: a section of jars.lock: "flink", "kafka", "questdb" or "ecj".
        progress: whether to show a progress line on stderr (plain lines when that is no terminal).

    Raises:
        ServiceError: no such set, a jar that cannot be had, or one whose sum differs from the lock's.
    """
    sets = lock()
    if set_name not in sets:
        raise ServiceError(f"There is no jar set {set_name!r}; expected one of {', '.join(sorted(sets))}.")
    jars = sets[set_name]
    if not all(jar.cached() for jar in jars):
        with (
            Progress(f"Fetching {set_name}", sum(jar.size for jar in jars), enabled=progress) as bar,
            locked(cache_folder() / "jars" / ".lock", lambda: bar.note("another process is downloading; waiting")),
        ):
            _fetch_missing(jars, bar)
    return [jar.path for jar in jars]


def class_path(jars: list[Path]) -> str:
    return os.pathsep.join(map(str, jars))


def _fetch_missing(jars: list[Jar], bar: Progress) -> None:
    missing = [jar for jar in jars if not jar.cached()]
    bar.advance(sum(jar.size for jar in jars) - sum(jar.size for jar in missing))
    needed = sum(jar.size for jar in missing)
    free = shutil.disk_usage(cache_folder()).free
    if free < needed:
        raise ServiceError(
            f"{cache_folder()} has {free / 1e6:.0f} MB free; the jars need {needed / 1e6:.0f} MB. "
            "Free some space, or set STREAMGAUGE_CACHE to a folder on another disk."
        )
    stop = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(download, jar, bar, stop) for jar in sorted(missing, key=lambda j: -j.size)]
        try:
            for future in futures:
                future.result()
        except BaseException:  # also Ctrl-C: leave .part files for the next time, do not finish the rest
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def download(jar: Jar, bar: Progress | None = None, stop: threading.Event | None = None) -> Path:
    """Download one jar into the cache, going on from a `.part` file if there is one.

    Raises:
        ServiceError: the repository cannot be reached, or its file is not the one that was locked.
    """
    target, url = jar.path, jar.url()
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        resumed = part.exists() and part.stat().st_size > 0
        try:
            _transfer(url, part, jar.size, bar, stop or threading.Event())
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            status = getattr(error, "code", None)
            if attempt == ATTEMPTS or (status is not None and 400 <= status < 500 and status not in (408, 416, 429)):
                raise ServiceError(
                    f"Could not download {url}: {error}. Expected {jar.size} bytes. Check the network, or set "
                    "STREAMGAUGE_MAVEN to the address of a Maven repository that can be reached; "
                    "what was downloaded so far is kept."
                ) from None
            time.sleep(0.5 * 2**attempt)
            continue
        found = _sha256(part)
        if found == jar.sha256:
            part.replace(target)
            return target
        if bar:
            bar.advance(-part.stat().st_size)
        part.unlink()
        if not resumed:  # a stale .part earns a second try, a wrong file does not
            raise ServiceError(
                f"{url} has SHA-256 {found}; jars.lock expects {jar.sha256}. The file was deleted. "
                "A proxy or mirror may have changed it: try another repository with STREAMGAUGE_MAVEN."
            )
    raise AssertionError("unreachable")


def _transfer(url: str, part: Path, size: int, bar: Progress | None, stop: threading.Event) -> None:
    """Bring `part` up to the whole file of `size` bytes; raises OSError when it comes out short."""
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    if bar:
        bar.advance(have)
    written = have
    try:
        if have < size:
            request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                if have and answer.status != 206:  # no ranges here: from the start
                    if bar:
                        bar.advance(-have)
                    have = written = 0
                with part.open("ab" if have else "wb") as file:
                    while chunk := answer.read(CHUNK_BYTES):
                        file.write(chunk)
                        written += len(chunk)
                        if bar:
                            bar.advance(len(chunk))
                        if stop.is_set():
                            raise OSError("stopped")
        if written < size:
            raise OSError(f"the connection ended after {written} bytes")
    except BaseException:
        if bar:
            bar.advance(-written)
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
