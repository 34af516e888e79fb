"""What all servers of ours have in common: a folder, a process, shared class data, an orderly end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TypeVar

from streamgauge.pipelines.services.class_data import ClassData
from streamgauge.pipelines.services.process import Service

Started = TypeVar("Started", bound="JavaServer")


class JavaServer(ABC):
    """A server on the wheel's JRE; a context manager. Subclasses start it: they set ``_service`` and ``_shared``.

    Attributes:
        folder: where its data, configuration and log are. log_path: the log.
    """

    def __init__(self, folder: Path | str, log_name: str) -> None:
        self.folder = Path(folder).resolve()
        self.log_path = self.folder / log_name
        self._service: Service | None = None
        self._shared: ClassData | None = None

    @property
    def pid(self) -> int | None:
        """The leader of the process group that holds the JVM; None before the start."""
        return self._service.pid if self._service else None

    @property
    def running(self) -> bool:
        return self._service is not None and self._service.running

    @abstractmethod
    def start(self: Started) -> Started:
        """Fetch what is missing, start, wait until ready. Raises ServiceError with the last log lines."""

    def stop(self) -> None:
        """Shut the server down; its data stays."""
        if self._service is not None:
            self._service.stop()
        if self._shared is not None:
            self._shared.finish()

    def __enter__(self: Started) -> Started:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
