"""The stream recup writes is an Arrow IPC stream: pyarrow reads back exactly what went in."""

import io
import math
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recup.arrow_stream import END_OF_STREAM, ArrowStream, BatchTemplate, compressor, framed
from recup.schema import TABLES, Column

KINDS = ("int64", "float64", "text", "bool", "category")
int64 = st.integers(-(2**63), 2**63 - 1)
text = st.text(max_size=20)
VALUES = {
    "int64": st.none() | int64,
    "float64": st.none() | st.floats(allow_nan=False),
    "text": st.none() | text,
    "bool": st.none() | st.booleans(),
    "category": st.none() | st.sampled_from(["waiting", "memory", "é\n\"'", ""]) | text,
}


def columns_of(kinds):
    return [Column("a column", name=f"c{n}", kind=kind, null="x") for n, kind in enumerate(kinds)]


def intern(values):
    return np.array([-1 if value is None else value for value in values], dtype="<i4")


def read(data):
    return pa.ipc.open_stream(io.BytesIO(data)).read_all()


@st.composite
def tables(draw):
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    batches = draw(
        st.lists(
            st.integers(1, 40).flatmap(
                lambda n: st.tuples(*[st.lists(VALUES[kind], min_size=n, max_size=n) for kind in kinds])
            ),
            min_size=1,
            max_size=4,
        )
    )
    return kinds, batches


@settings(deadline=None, max_examples=80)
@given(tables())
def test_batches_read_back_as_they_were_written(table):
    kinds, batches = table
    stream = ArrowStream(columns_of(kinds), {"table": "t"}, intern, compressor())
    data = stream.header() + b"".join(stream.batch(batch) for batch in batches) + END_OF_STREAM

    found = read(data)

    found.validate(full=True)
    for number in range(len(kinds)):
        assert found.column(number).to_pylist() == [value for batch in batches for value in batch[number]]
    assert stream.degraded_count == 0


@settings(deadline=None, max_examples=60)
@given(tables(), st.data())
def test_a_stream_cut_anywhere_gives_back_every_complete_batch(table, data):
    kinds, batches = table
    stream = ArrowStream(columns_of(kinds), {}, intern, compressor())
    header = stream.header()
    pieces = [stream.batch(batch) for batch in batches]
    whole = header + b"".join(pieces)
    cut = data.draw(st.integers(len(header), len(whole)))
    complete = sum(cut >= len(header) + sum(map(len, pieces[: n + 1])) for n in range(len(pieces)))

    reader = pa.ipc.open_stream(io.BytesIO(whole[:cut]))
    found = []
    try:
        while True:
            found.append(reader.read_next_batch())
    except (StopIteration, pa.ArrowInvalid, OSError):
        pass

    assert sum(batch.num_rows for batch in found) == sum(len(batch[0]) for batch in batches[:complete])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 3000).map(lambda size: bytes(range(256)) * (size // 256) + bytes(size % 256)), max_size=6)
)
def test_a_message_framed_in_c_is_that_framed_in_python(buffers):
    columns = pytest.importorskip("recup.columns", reason="recup was built without a C compiler")
    template, nodes = BatchTemplate(1, len(buffers)), [7, 2]
    assert columns.framed(template, 7, nodes, buffers, zlib.compress) == framed(
        template, 7, nodes, buffers, zlib.compress
    )


def test_every_table_of_the_schema_makes_a_readable_stream():
    for table in TABLES.values():
        stream = ArrowStream(table.columns, {"table": table.name}, intern, compressor())
        empty = [[None] for _ in table.columns]
        found = read(stream.header() + stream.batch(empty) + END_OF_STREAM)
        assert found.column_names == list(table.column_names)
        assert found.num_rows == 1
        assert {bytes(f.metadata[b"kind"]).decode() for f in found.schema} == {c.kind for c in table.columns}


def test_the_sentinel_of_a_column_is_read_as_null():
    stream = ArrowStream([Column("n", name="n", kind="int64", null="none", null_value=-1)], {}, intern, compressor())
    found = read(stream.header() + stream.batch([[1, -1, 3]]) + stream.batch([[None, -1, 7]]))
    assert found.column("n").to_pylist() == [1, None, 3, None, None, 7]
    assert stream.degraded_count == 0


class Odd:
    def __str__(self):
        raise RuntimeError("no")

    def __int__(self):
        raise RuntimeError("no")


def test_values_of_an_unexpected_type_are_kept_as_text_or_null_and_counted():
    columns = columns_of(["int64", "float64", "text", "category"])
    stream = ArrowStream(columns, {}, intern, compressor())
    batch = [[1, Odd(), 2.7], [Odd(), 1, None], ["a", 5, Odd()], [{"un": "hashable"}, "x", Odd()]]

    found = read(stream.header() + stream.batch(batch))

    odd = "<Odd whose str() raised RuntimeError>"
    assert found.column(0).to_pylist() == [1, None, 2]
    assert found.column(1).to_pylist() == [None, 1.0, None]
    assert found.column(2).to_pylist() == ["a", "5", odd]
    assert found.column(3).to_pylist() == ["{'un': 'hashable'}", "x", odd]
    assert stream.degraded_count == 4


def test_lone_surrogates_are_written_escaped():
    stream = ArrowStream(columns_of(["text"]), {}, intern, compressor())
    assert read(stream.header() + stream.batch([["a\udce9b"]])).column(0).to_pylist() == ["a\\udce9b"]


def test_numbers_too_large_become_null_and_are_counted():
    stream = ArrowStream(columns_of(["int64"]), {}, intern, compressor())
    assert read(stream.header() + stream.batch([[2**70, 1]])).column(0).to_pylist() == [None, 1]
    assert stream.degraded_count == 1


def test_not_a_number_stays_not_a_number():
    stream = ArrowStream(columns_of(["float64"]), {}, intern, compressor())
    (value,) = read(stream.header() + stream.batch([[math.nan]])).column(0).to_pylist()
    assert math.isnan(value)


@pytest.mark.parametrize("distinct_count", [10, 2_000, 5_000])
def test_dictionaries_restart_when_they_grow_long(distinct_count):
    stream = ArrowStream(columns_of(["category"]), {}, intern, compressor())
    batches = [[f"v{n % distinct_count}" for n in range(start, start + 3_000)] for start in (0, 3_000, 6_000)]
    found = read(stream.header() + b"".join(stream.batch([batch]) for batch in batches))
    assert found.column(0).to_pylist() == [value for batch in batches for value in batch]


def test_a_batch_after_forget_can_be_read_without_those_before_it():
    stream = ArrowStream(columns_of(["category", "int64"]), {}, intern, compressor())
    stream.batch([["a", "b"], [1, 2]])
    stream.forget()
    found = read(stream.header() + stream.batch([["b", None], [3, 4]]))
    assert found.to_pylist() == [{"c0": "b", "c1": 3}, {"c0": None, "c1": 4}]


def test_large_columns_are_compressed():
    stream = ArrowStream(columns_of(["int64"]), {}, intern, compressor())
    batch = stream.batch([list(np.arange(8192))])
    assert len(batch) < 8192 * 4
