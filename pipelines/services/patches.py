"""The class path of Flink: classes of ours, compiled once into the cache, before Beam's and Flink's."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path

from streamgauge.pipelines.services.cache import cache_folder, locked
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.jars import class_path, fetch, version_of
from streamgauge.pipelines.services.java import run_java

SOURCES = Path(__file__).with_name("java_sources")
CLUSTER_SOURCES = Path(__file__).with_name("java_cluster")
RUNNER = "beam-runners-flink-1.19"
RPC_JAR = "flink-rpc-akka.jar"
RPC_CARRIERS = ("flink-rpc-akka-loader-", "flink-dist-")
"""Flink's loader of it, or a distribution."""
# Fixed, so that the jar's bytes depend on the sources and the compiler alone.
ZIP_TIME = (2020, 1, 1, 0, 0, 0)


def flink_jars(progress: bool = True, patched: bool = True) -> list[Path]:
    """The class path of the Flink job server: our patch first, then the locked jars, then Flink's RPC system.

    Args:
        progress: as for `fetch`.
        patched: without it Beam's own classes run, as they were published (to compare).

    Raises:
        ServiceError: a jar cannot be had or the patch does not compile.
    """
    jars = fetch("flink", progress)
    return [patch_jar(jars, progress), *jars, rpc_jar(jars)] if patched else jars


def rpc_jar(jars: list[Path]) -> Path:
    """Flink's RPC system, unpacked into the cache from the one of `jars` that carries it (see RpcOnClassPath.java)."""
    carrier = next(jar for jar in jars if jar.name.startswith(RPC_CARRIERS))
    target = cache_folder() / "patches" / f"{carrier.stem}-unpacked.jar"
    if not target.exists():
        with locked(target.parent / ".lock"), zipfile.ZipFile(carrier) as jar, tempfile.TemporaryDirectory(dir=target.parent) as folder:
            Path(jar.extract(RPC_JAR, folder)).replace(target)
    return target


def cluster_jar(jars: list[Path], progress: bool = True) -> Path:
    """The jar of what a standalone cluster needs besides, compiled against `jars`, its class path. Raises as `flink_jars`."""
    return patch_jar(jars, progress, CLUSTER_SOURCES)


def patch_jar(jars: list[Path], progress: bool = True, folder: Path = SOURCES) -> Path:
    """The jar of the classes under `folder`, compiled against `jars` if the cache lacks it, and of its META-INF."""
    sources = sorted(folder.rglob("*.java"))
    resources = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob("META-INF/**/*")) if file.is_file()}
    digest = hashlib.sha256()
    for content in (*(source.read_bytes() for source in sources), *resources.values()):
        digest.update(content)
    version = version_of("flink", RUNNER)
    target = cache_folder() / "patches" / f"{RUNNER}-{version}-{digest.hexdigest()[:16]}.jar"
    if not target.exists():
        with locked(target.parent / ".lock"):
            if not target.exists():
                _compile(sources, resources, jars, fetch("ecj", progress), target)
    return target


def _compile(sources: list[Path], resources: dict[str, bytes], jars: list[Path], compiler: list[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        classes = Path(folder) / "classes"
        try:
            run_java(
                "-cp", class_path(compiler), "org.eclipse.jdt.internal.compiler.batch.Main",
                "-11", "-proc:none", "-nowarn", "-cp", class_path(jars), "-d", classes, *sources,
            )  # fmt: skip
        except ServiceError as error:
            raise ServiceError(f"Streamgauge's patch of Beam's Flink runner does not compile. {error}") from None
        part = Path(folder) / target.name
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as jar:
            compiled = {str(file.relative_to(classes)): file.read_bytes() for file in sorted(classes.rglob("*.class"))}
            for name, content in {**compiled, **resources}.items():
                jar.writestr(zipfile.ZipInfo(name, ZIP_TIME), content)
        part.replace(target)
