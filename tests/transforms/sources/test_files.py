"""Files against plain Python's reading of the same bytes."""

from __future__ import annotations

import gzip
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.sources.base import RawBatch, SourceError, Split
from streamgauge.transforms.sources.files import Files, FilesOptions
from streamgauge.transforms.sources.lines import LineBuffer

Record = tuple[int, bytes]


def source(path: str | list[str], **options: object) -> Files:
    return Files(FilesOptions.model_validate({"path": path, **options}))


def zstd(data: bytes) -> bytes:
    """Without a checksum."""
    return bytes(pa.compress(data, "zstd", asbytes=True))


def zstd_checked(data: bytes) -> bytes:
    """With a checksum, as the command line tool writes it: without one not all damage can be told."""
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(data)  # type: ignore[no-any-return]


def records(batch: RawBatch) -> list[Record]:
    assert batch.newline_terminated
    payloads = batch.payloads.to_pylist()
    assert b"".join(payloads) == (batch.payloads.buffers()[2] or pa.py_buffer(b"")).to_pybytes()
    assert all(p.count(b"\n") == 1 and p.endswith(b"\n") for p in payloads)
    return list(zip(batch.positions.tolist(), (p[:-1] for p in payloads), strict=True))


def read_all(
    files: Files, split: Split, position: int = 0, max_records: int = 1000, max_bytes: int = 1 << 20
) -> tuple[list[Record], list[RawBatch]]:
    reader = files.open(split, position)
    found: list[Record] = []
    batches = []
    while True:
        batch = reader.read(max_records, max_bytes, 0.0)
        assert len(batch) <= max_records
        assert len(batch) or batch.errors or batch.done
        batches.append(batch)
        found += records(batch)
        assert batch.next_position >= position
        position = batch.next_position
        if batch.done:
            reader.close()
            return found, batches


def oracle(data: bytes) -> list[Record]:
    found, position = [], 0
    for line in data.split(b"\n"):
        text = line.removesuffix(b"\r")
        if text:
            found.append((position, text))
        position += len(line) + 1
    return found


pieces = st.sampled_from([b"a", b"bcd", b"\r\n", b"\n", b"\n\n", b"\xff\x00", b"x" * 50, b"q\rq"])
content = st.builds(lambda parts, last: b"".join([*parts, last]), st.lists(pieces, max_size=60), st.sampled_from([b"z", b"z\n", b"z\r\n"]))


@given(content, st.integers(1, 7), st.integers(1, 60))
def test_any_bytes_are_cut_as_plain_python_does(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, max_records: int, max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name, encode in ENCODINGS.items():
        (folder / name).write_bytes(encode(data))
        files = source(str(folder / name))
        (split,) = files.splits()
        found, batches = read_all(files, split, 0, max_records, max_bytes)
        assert found == oracle(data)
        assert batches[-1].next_position == len(data)
        assert not any(batch.errors for batch in batches)


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain.ndjson": lambda data: data,
    "a.gz": gzip.compress,
    "members.gz": lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:]),
    "a.zst": zstd,
    "frames.zst": lambda data: zstd(data[:7]) + zstd(data[7:]),
}


@given(content, st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_chunk_borders_do_not_matter(data: bytes, sizes: list[int]) -> None:
    lines = LineBuffer(0, max_line=40)
    found, errors, begin = [], [], 0
    for size in [*sizes, len(data) + 1]:
        chunk = data[begin : begin + size]
        begin += size
        lines.add(chunk)
        while lines.ready:
            batch = lines.take(3, 50)
            found += records(batch)
            errors += batch.errors
    lines.finish()
    while lines.ready:
        batch = lines.take(3, 50)
        found += records(batch)
        errors += batch.errors
    # A line counts with its \r: the limit is on what must be held in memory.
    large = {position for position, _ in oracle(data) if len(data[position:].split(b"\n")[0]) > 40}
    assert found == [r for r in oracle(data) if r[0] not in large]
    assert {e[0] for e in errors} == large and len(errors) == len(large)


@pytest.mark.parametrize("name", ["a.ndjson", "a.gz", "a.zst"])
def test_reading_resumes_at_every_position(tmp_path: Path, name: str) -> None:
    rng = random.Random(1)
    data = b"\n".join(b"%d" % i * rng.randrange(1, 20) for i in range(300)) + b"\n"
    (tmp_path / name).write_bytes(ENCODINGS["plain.ndjson" if name == "a.ndjson" else name](data))
    files = source(str(tmp_path / name))
    (split,) = files.splits()
    whole, batches = read_all(files, split, max_records=7)
    for position in [batch.next_position for batch in batches]:
        assert read_all(files, split, position)[0] == [r for r in whole if r[0] >= position]


def test_splits_are_files_in_order_with_stable_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.ndjson", "a.ndjson", "deep/er/c.ndjson", "deep/d.gz", "other.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x\n" if not name.endswith("gz") else gzip.compress(b"x\n"))
    monkeypatch.chdir(tmp_path)
    files = source(["**/*.ndjson", "a.*", "deep/*.gz"])
    assert files.bounded and files.name == "files:**/*.ndjson,a.*,deep/*.gz"
    expected = [Split("a.ndjson", 0, 2), Split("b.ndjson", 0, 2), Split("deep/d.gz", 0, None), Split("deep/er/c.ndjson", 0, 2)]
    assert files.splits() == expected
    monkeypatch.chdir("/")
    elsewhere: Files = pickle.loads(pickle.dumps(files))
    assert elsewhere.splits() == expected
    assert [read_all(elsewhere, split)[0] for split in expected] == [[(0, b"x")]] * 4


def test_no_match_is_an_error_only_when_not_followed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file matches .*nothing\*"):
        source(str(tmp_path / "nothing*")).splits()
    assert source(str(tmp_path / "nothing*"), follow=True).splits() == []
    with pytest.raises(SourceError, match="cannot read the file"):
        source("x").open(Split(str(tmp_path / "gone"), 0, 3), 0)
    with pytest.raises(ValidationError):
        FilesOptions.model_validate({"path": []})


def test_an_empty_file_is_done_at_once(tmp_path: Path) -> None:
    for name in ("a.ndjson", "a.gz", "a.zst"):
        (tmp_path / name).write_bytes(b"" if name == "a.ndjson" else ENCODINGS[name](b""))
        files = source(str(tmp_path / name))
        found, batches = read_all(files, files.splits()[0])
        assert found == [] and len(batches) == 1 and batches[0].next_position == 0 and not batches[0].errors


@pytest.mark.parametrize("ending", [b"\nlast\n", b""])
def test_a_line_that_is_too_long_is_an_error_and_reading_goes_on(tmp_path: Path, ending: bytes) -> None:
    data = b"first\n" + b"y" * 300_000 + ending
    (tmp_path / "a").write_bytes(data)
    files = source(str(tmp_path / "a"), max_line=1000)
    found, batches = read_all(files, files.splits()[0], max_bytes=1 << 16)
    assert [text for _, text in found] == [b"first"] + ([b"last"] if ending else [])
    (error,) = [error for batch in batches for error in batch.errors]
    assert error[:2] == (6, "too_large") and "1000" in error[2] and error[3] == b"y" * 1024
    assert batches[-1].next_position == len(data)


def test_bytes_appended_after_the_start_are_not_part_of_a_bounded_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1\n2\n")
    files = source(str(path))
    (split,) = files.splits()
    with path.open("ab") as file:
        file.write(b"3\n")
    assert [text for _, text in read_all(files, split)[0]] == [b"1", b"2"]
    os.truncate(path, 2)
    with pytest.raises(SourceError, match="truncated"):
        files.open(split, 0)


def _damaged(codec: str, how: str) -> tuple[bytes, bytes]:
    rng = random.Random(5)
    data = b"".join(b"%d,%d\n" % (i, rng.randrange(10**12)) for i in range(40_000))
    packed = bytearray(gzip.compress(data) if codec == "gz" else zstd_checked(data))
    if how == "cut":
        del packed[len(packed) * 2 // 3 :]
    elif how == "overwritten":
        middle = len(packed) // 2
        packed[middle : middle + 200] = rng.randbytes(200)
    elif how == "followed by garbage":
        packed += b"this is not compressed\n"
    else:
        packed[:] = b"this was never compressed\n"
    return data, bytes(packed)


@pytest.mark.parametrize("how", ["cut", "overwritten", "followed by garbage", "never compressed"])
@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_a_damaged_file_gives_what_can_be_read_and_one_error(tmp_path: Path, codec: str, how: str) -> None:
    data, packed = _damaged(codec, how)
    (tmp_path / f"a.{codec}").write_bytes(packed)
    files = source(str(tmp_path / f"a.{codec}"))
    (split,) = files.splits()
    found, batches = read_all(files, split)
    (error,) = [error for batch in batches for error in batch.errors]
    assert error[1] == "corrupt" and error[0] >= (found[-1][0] if found else 0)
    whole = oracle(data)
    least = {"cut": 0.5, "overwritten": 0.25, "followed by garbage": 1, "never compressed": 0}[how]
    assert len(found) >= least * len(whole)
    intact = len(whole) // 4 if how != "never compressed" else 0
    assert found[:intact] == whole[:intact]
    if how in ("cut", "followed by garbage"):
        assert found == whole[: len(found)]
    for position in (batches[0].next_position, batches[-1].next_position):
        again, rest = read_all(files, split, position)
        assert again == [r for r in found if r[0] >= position]
        assert rest[-1].errors[0][1] == "corrupt"


def test_following_sees_growth_new_files_and_unfinished_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"1\n2")
    files = source(str(tmp_path / "*.log"), follow=True)
    assert not files.bounded
    (split,) = files.splits()
    assert split.end is None
    reader = files.open(split, 0)
    assert records(reader.read(10, 1000, 0.0)) == [(0, b"1")]
    batch = reader.read(10, 1000, 0.0)
    assert not len(batch) and batch.caught_up and not batch.done and batch.next_position == 2
    with path.open("ab") as file:
        file.write(b"2\n3\n")
    assert records(reader.read(10, 1000, 0.0)) == [(2, b"22"), (5, b"3")]
    (tmp_path / "b.log").write_bytes(b"")
    assert [Path(s.id).name for s in files.splits()] == ["a.log", "b.log"]


def test_following_says_that_a_file_was_truncated_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"1\n2\n")
    files = source(str(path), follow=True)
    (split,) = files.splits()
    reader = files.open(split, 0)
    assert len(reader.read(10, 1000, 0.0)) == 2
    path.rename(tmp_path / "old")
    assert reader.read(10, 1000, 0.0).caught_up
    path.write_bytes(b"1\n2\n3\n4\n")
    with pytest.raises(SourceError, match="replaced"):
        reader.read(10, 1000, 0.0)
    reader = files.open(split, 4)
    assert len(reader.read(10, 1000, 0.0)) == 2
    os.truncate(path, 2)
    with pytest.raises(SourceError, match="truncated"):
        reader.read(10, 1000, 0.0)
    with pytest.raises(SourceError, match="truncated"):
        files.open(split, 8)


def test_a_followed_compressed_file_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"1\n2\n"))
    files = source(str(tmp_path / "*"), follow=True)
    assert [text for _, text in read_all(files, files.splits()[0])[0]] == [b"1", b"2"]
