"""Files of lines as a source: plain, gzip or zstd by suffix, read once or followed as they grow.

A split is a file, a position is a byte offset in its uncompressed content. Delivery: reading from a position gives
the same records with the same positions every time, as long as the files are only appended to; with positions kept
in checkpoints every line is processed exactly once.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Protocol

import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.config import Config
from streamgauge.transforms.sources.base import RawBatch, SourceError, Split
from streamgauge.transforms.sources.lines import LineBuffer, empty

CODECS = {".gz": "gzip", ".zst": "zstd"}
CHUNK_BYTES = 8 << 20
POLL_SECONDS = 0.05


class FilesOptions(Config):
    """Files of lines. `.gz` and `.zst` are decompressed; blank lines are skipped."""

    short: ClassVar[str] = "path"

    path: str | list[str] = Field(min_length=1, description="Path or glob, or a list of them; `**` matches any number of folders.")
    follow: bool = Field(
        False,
        description="Keep reading as files grow and new ones appear. A line counts once its newline is there. "
        "Compressed files must be complete when they appear.",
    )
    max_line: int = Field(16 << 20, gt=0, le=1 << 30, description="Bytes. A longer line becomes a dead letter with its first 1 kB.")


class Files:
    """Connector for files of lines; see FilesOptions. Relative paths are relative to where the job was made."""

    Options = FilesOptions

    def __init__(self, options: FilesOptions) -> None:
        self._options = options
        self._patterns = [options.path] if isinstance(options.path, str) else options.path
        self._folder = Path.cwd()
        self.name = f"files:{','.join(self._patterns)}"
        self.bounded = not options.follow

    def splits(self, known: Collection[str] = ()) -> list[Split]:
        """Raises SourceError when nothing matches and files are not followed."""
        matches = {path for pattern in self._patterns for path in self._matches(pattern)}
        found = sorted(path for path in matches if self._full(path).is_file())
        if not found and self.bounded:
            wanted = " or ".join(self._patterns)
            raise SourceError(f"no file matches {wanted} in {self._folder}; check the path, or set follow: true to wait for files")
        return [Split(path, 0, self._end(path)) for path in found]

    def open(self, split: Split, position: int) -> LinesReader:
        path = self._full(split.id)
        codec = CODECS.get(path.suffix)
        try:
            stream: _Stream
            if codec:
                stream = _Compressed(path, codec, position)
            elif self.bounded:
                stream = _Plain(path, position, split.end if split.end is not None else path.stat().st_size)
            else:
                stream = _Followed(path, position)
        except OSError as error:
            raise SourceError(f"cannot read the file {path}: {error.strerror or error}") from None
        return LinesReader(stream, LineBuffer(position, self._options.max_line))

    def _matches(self, pattern: str) -> list[str]:
        return glob.glob(pattern, root_dir=self._folder, recursive=True)

    def _full(self, path: str) -> Path:
        return self._folder / path

    def _end(self, path: str) -> int | None:
        """Size of a plain file that is read once; a compressed one's uncompressed size is not known before it is read."""
        full = self._full(path)
        return None if full.suffix in CODECS or not self.bounded else full.stat().st_size


class _Stream(Protocol):
    """The uncompressed bytes of a file from a position on."""

    follow: bool

    def read(self, size: int) -> bytes | pa.Buffer:
        """At most ``size`` bytes, none at the present end. Raises _CorruptError, SourceError."""

    def close(self) -> None: ...


class _CorruptError(Exception):
    """Compressed data that cannot be decompressed; what precedes the damage has been read."""


class LinesReader:
    """Reader of one file."""

    def __init__(self, stream: _Stream, lines: LineBuffer) -> None:
        self._stream = stream
        self._lines = lines
        self._ended = False

    def read(self, max_records: int, max_bytes: int, timeout: float) -> RawBatch:
        """See Reader. A damaged compressed file ends with an error entry ``corrupt``.

        Raises SourceError when the file shrank or was replaced.
        """
        deadline = time.monotonic() + timeout
        while True:
            if self._lines.ready or self._ended:
                batch = self._lines.take(max_records, max_bytes)
                batch.done = batch.caught_up = self._ended and not self._lines.ready
                if len(batch) or batch.errors or batch.done:
                    return batch
                continue  # blank lines only
            try:
                chunk = self._stream.read(min(CHUNK_BYTES, max(max_bytes, 1 << 16)))
            except _CorruptError as error:
                self._lines.corrupt(str(error))
                self._ended = True
                continue
            if len(chunk):
                self._lines.add(chunk)
            elif not self._stream.follow:
                self._lines.finish()
                self._ended = True
            else:
                wait = min(POLL_SECONDS, deadline - time.monotonic())
                if wait <= 0:
                    batch = empty(self._lines.rest[0])
                    batch.caught_up = True
                    return batch
                time.sleep(wait)

    def close(self) -> None:
        self._stream.close()


class _Plain:
    """``path`` from ``position`` to ``end``; appended bytes beyond are not looked at."""

    follow = False

    def __init__(self, path: Path, position: int, end: int) -> None:
        self._path, self._left = path, end - position
        size = path.stat().st_size
        if size < end:
            raise SourceError(
                f"the file {path} has {size} bytes where {end} were expected: it was truncated or replaced since the job began; "
                "start it anew with --fresh"
            )
        self._file = path.open("rb", buffering=0)
        self._file.seek(position)

    def read(self, size: int) -> bytes:
        chunk = self._file.read(min(size, self._left))
        if not chunk and self._left:
            raise SourceError(f"the file {self._path} was truncated while it was read, {self._left} bytes are missing")
        self._left -= len(chunk)
        return chunk

    def close(self) -> None:
        self._file.close()


class _Followed:
    """``path`` from ``position`` on, as it grows."""

    follow = True

    def __init__(self, path: Path, position: int) -> None:
        self._path, self._position = path, position
        self._file = path.open("rb", buffering=0)
        self._check()
        self._file.seek(position)

    def read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        self._position += len(chunk)
        if not chunk:
            self._check()
        return chunk

    def _check(self) -> None:
        """A followed file may only grow; one that is moved away may stay away, but not be replaced."""
        here = os.fstat(self._file.fileno())
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = here
        if here.st_size < self._position:
            found = f"truncated: it has {here.st_size} bytes and was read to {self._position}"
        elif (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            found = "replaced by another file of that name (rotated)"
        else:
            return
        raise SourceError(f"the followed file {self._path} was {found}; write each new log under a new name that the path matches")

    def close(self) -> None:
        self._file.close()


class _Compressed:
    """The uncompressed content of ``path`` from ``position`` on. Several gzip members or zstd frames in a row are one stream."""

    follow = False

    def __init__(self, path: Path, codec: str, position: int) -> None:
        self._path, self._codec = path, codec
        self._position = position
        self._open()
        self._broken: str | None = None

    def _open(self) -> None:
        self._stream = pa.CompressedInputStream(pa.OSFile(str(self._path)), self._codec)
        skipped = 0
        while skipped < self._position:
            try:
                chunk = self._stream.read_buffer(min(CHUNK_BYTES, self._position - skipped))
            except OSError:
                return  # damaged before the position: the next read says so
            if not len(chunk):
                return
            skipped += len(chunk)

    def read(self, size: int) -> bytes | pa.Buffer:
        if self._broken:
            raise _CorruptError(self._broken)
        try:
            chunk = self._stream.read_buffer(size)
        except OSError as error:
            chunk = self._salvage(size)
            after = self._position + len(chunk)
            self._broken = f"the {self._codec} data of {self._path} is damaged after {after} bytes of content: {error}"
            if not chunk:
                raise _CorruptError(self._broken) from None
        self._position += len(chunk)
        return chunk

    def _salvage(self, size: int) -> bytes:
        """What a failed read of ``size`` bytes could have given: a byte at a time, since a read that fails gives nothing."""
        self._stream.close()
        self._open()
        good = bytearray()
        try:
            while len(good) < size:
                good += self._stream.read(1)
        except OSError:
            pass
        return bytes(good)

    def close(self) -> None:
        self._stream.close()
