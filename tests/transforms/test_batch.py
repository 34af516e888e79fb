from __future__ import annotations

import pickle

import pyarrow as pa
import pytest
from apache_beam import coders
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.transforms.batch import BatchCodec, BatchCoder, BatchType, SchemaMismatch, fingerprint

TYPES = {
    pa.int64(): st.none() | st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.none() | st.floats(allow_nan=False),
    pa.string(): st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    pa.bool_(): st.none() | st.booleans(),
    pa.binary(): st.none() | st.binary(),
    pa.dictionary(pa.int8(), pa.string()): st.none() | st.sampled_from(["a", "", "ä"]),
    pa.struct([("x", pa.int64())]): st.none() | st.builds(lambda x: {"x": x}, st.integers(0, 9)),
}


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    kinds = draw(st.lists(st.sampled_from(list(TYPES)), min_size=1, max_size=5))
    rows = draw(st.integers(0, 20))
    columns = [pa.array(draw(st.lists(TYPES[kind], min_size=rows, max_size=rows)), kind) for kind in kinds]
    return pa.record_batch(columns, names=[f"c{i}" for i in range(len(kinds))])


@given(batches())
def test_what_is_encoded_comes_back(batch: pa.RecordBatch) -> None:
    coder = coders.registry.get_coder(BatchType(batch.schema))
    assert isinstance(coder, BatchCoder)
    restored = pickle.loads(pickle.dumps(coder)).decode(coder.encode(batch))
    assert restored.schema.equals(batch.schema)
    assert restored.to_pylist() == batch.to_pylist()


@given(batches())
def test_a_slice_carries_only_its_rows(batch: pa.RecordBatch) -> None:
    codec = BatchCodec(batch.schema)
    part = batch.slice(batch.num_rows // 2)
    assert codec.decode(codec.encode(part)).to_pylist() == batch.to_pylist()[batch.num_rows // 2 :]


def test_another_schema_is_refused_in_words() -> None:
    old, new = pa.schema([("x", pa.int64())]), pa.schema([("x", pa.float64())])
    data = BatchCodec(old).encode(pa.record_batch({"x": pa.array([1])}))
    with pytest.raises(SchemaMismatch, match="--fresh"):
        BatchCodec(new).decode(data)
    with pytest.raises(SchemaMismatch, match="x: double"):
        BatchCodec(old).encode(pa.record_batch({"x": pa.array([1.0])}))


def test_a_fingerprint_depends_on_names_types_order_and_nullability() -> None:
    base = [pa.field("a", pa.int64()), pa.field("b", pa.string())]
    variants = [base, base[::-1], [base[0]], [pa.field("a", pa.int32()), base[1]], [pa.field("a", pa.int64(), nullable=False), base[1]]]
    assert len({fingerprint(pa.schema(fields)) for fields in variants}) == len(variants)


@given(batches(), st.binary(max_size=3))
def test_large_batches_are_compressed_and_read_by_codecs_that_do_not(batch: pa.RecordBatch, tail: bytes) -> None:
    """Whatever stands behind, as marks in state do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamgauge.transforms.batch.COMPRESS_FROM", 0)
        encoded = BatchCodec(batch.schema, compress=True).encode(batch)
    assert BatchCodec(batch.schema).decode(encoded + tail).to_pylist() == batch.to_pylist()


def test_compression_is_for_large_batches() -> None:
    codec = BatchCodec(pa.schema([("x", pa.int64())]), compress=True)
    small, large = (pa.record_batch({"x": pa.array([7] * rows)}) for rows in (100, 10_000))
    assert (len(codec.encode(small)) > small.nbytes, len(codec.encode(large)) < large.nbytes / 10) == (True, True)
    assert codec.decode(codec.encode(large)).equals(large)


def test_a_batch_is_not_encoded_to_learn_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam counts the bytes of elements between fused steps too."""
    batch = pa.record_batch({"x": pa.array([1, 2]), "y": pa.array(["a", "b"])})
    monkeypatch.setattr(BatchCodec, "encode", None)
    assert BatchCoder(batch.schema).estimate_size(batch) == 2 * 2 * 8
