"""Batches made in C and in Python read the same: what went in, in order, whatever it is."""

import io
import math
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recup import rows as rows_module
from recup.arrow_stream import END_OF_STREAM
from recup.rows import CompiledForm, PythonForm, Rows
from recup.schema import TABLES, Column, Table
from recup.spool import KEY_COLUMNS, key_text

COMPILED = rows_module.compiled is not None
compiled = pytest.mark.skipif(not COMPILED, reason="recup was built without a C compiler")
forms = pytest.mark.parametrize("form", [PythonForm, pytest.param(CompiledForm, marks=compiled)])

KINDS = ("int64", "float64", "text", "bool", "category", "key")
text = st.text(max_size=20)
VALUES = {
    "int64": st.none() | st.integers(-(2**63), 2**63 - 1),
    "float64": st.none() | st.floats(allow_nan=False),
    "text": st.none() | text,
    "bool": st.none() | st.booleans(),
    "category": st.none() | st.sampled_from(["waiting", "memory", "é\n\"'", "", "\ud800"]) | text,
    "key": st.none() | st.sampled_from(["x", ("x", 0), 7, b"7", 1.5, "('x', 0)"]) | st.tuples(text, st.integers(0, 3)),
}


def table_of(kinds):
    columns = tuple(Column("a column", name=f"c{n}", kind=kind, null="x") for n, kind in enumerate(kinds))
    return Table("t", tuple, "", 1, (), columns)


class Writing:
    """One table's rows and its keys, written as a spool writes them."""

    def __init__(self, form, table):
        self.form, self.table = form(key_text), table
        self.rows, self.degraded_count = Rows(table), 0
        self.stream = self.form.stream(table.columns, {})
        self.key_stream = self.form.stream(KEY_COLUMNS, {})
        self.data, self.keys = self.stream.header(), self.key_stream.header()

    def write(self):
        while values := self.rows.take()[0]:
            batch, degraded = self.form.batch(self.stream, values)
            self.degraded_count += degraded
            if self.form.new_key_count:
                self.keys += self.form.new_keys(self.key_stream)[0]
            self.data += batch

    def read(self):
        """Return the rows, keys as (text, type)."""

        def table(data):
            return pa.ipc.open_stream(io.BytesIO(data + END_OF_STREAM)).read_all()

        keys = {row["key_id"]: (row["key"], row["key_type"]) for row in table(self.keys).to_pylist()}
        read = table(self.data).to_pylist()
        for row in read:
            for column in self.table.columns:
                if column.kind == "key" and row[column.name] is not None:
                    row[column.name] = keys[row[column.name]]
        return [tuple(row.values()) for row in read]


def shown(kind, value):
    if value is None:
        return None
    if kind == "key":
        return escaped(str(value)), type(value).__name__
    return escaped(value) if isinstance(value, str) else value


def escaped(value):
    return value.encode("utf-8", "backslashreplace").decode()


@st.composite
def tables(draw):
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    batches = st.lists(st.tuples(*[VALUES[kind] for kind in kinds]), min_size=1, max_size=40)
    return kinds, draw(st.lists(batches, min_size=1, max_size=4))


@forms
@settings(deadline=None, max_examples=80)
@given(tables())
def test_rows_read_back_as_they_were_put(form, table):
    kinds, batches = table
    writing = Writing(form, table_of(kinds))
    for batch in batches:
        for row in batch:
            writing.rows.put(row)
        writing.write()
    expected = [
        tuple(shown(kind, value) for kind, value in zip(kinds, row, strict=True)) for batch in batches for row in batch
    ]
    assert writing.read() == expected
    assert writing.degraded_count == 0
    assert len(writing.rows) == 0


class Text(str):
    __slots__ = ()

    def __str__(self):
        raise RuntimeError("no")


class Unprintable:
    def __str__(self):
        raise RuntimeError("no")


@forms
@pytest.mark.parametrize(
    ("kind", "value", "written", "degraded"),
    [
        ("int64", True, 1, 0),
        ("int64", np.int32(7), 7, 0),
        ("int64", 2.0, 2, 0),
        ("int64", 2**63, None, 1),
        ("int64", "x", None, 1),
        ("float64", 3, 3.0, 0),
        ("float64", np.float32(0.5), 0.5, 0),
        ("float64", 10**400, None, 1),
        ("float64", "x", None, 1),
        ("bool", 1, True, 0),
        ("bool", [], False, 0),
        ("text", 7, "7", 1),
        ("text", Text("own"), "own", 0),
        ("text", Unprintable(), "<Unprintable whose str() raised RuntimeError>", 1),
        ("category", 7, "7", 1),
        ("category", np.str_("array"), "array", 0),
        ("key", Text("own"), ("<Text whose str() raised RuntimeError>", "Text"), 0),
        ("key", Unprintable(), ("<Unprintable whose str() raised RuntimeError>", "Unprintable"), 0),
    ],
)
def test_values_of_an_unexpected_type_are_converted_or_counted(form, kind, value, written, degraded):
    writing = Writing(form, table_of([kind]))
    writing.rows.put((value,))
    writing.write()
    assert writing.read() == [(written,)]
    assert writing.degraded_count == degraded


@compiled
def test_not_a_number_stays_not_a_number():
    writing = Writing(CompiledForm, table_of(["float64"]))
    writing.rows.put((math.nan,))
    writing.write()
    ((value,),) = writing.read()
    assert math.isnan(value)


@compiled
def test_the_sentinel_of_a_column_is_read_as_null():
    column = Column("a column", name="n", kind="int64", null="none", null_value=-1)
    writing = Writing(CompiledForm, Table("t", tuple, "", 1, (), (column,)))
    for value in (5, -1, 0, None):
        writing.rows.put((value,))
    writing.write()
    assert writing.read() == [(5,), (None,), (0,), (None,)]


@compiled
def test_many_rows_come_in_several_batches_and_keep_their_order():
    writing = Writing(CompiledForm, table_of(["int64", "key", "category"]))
    expected = [(n, f"k-{n % 1000}", f"c-{n % 700}") for n in range(20_000)]
    for row in expected:
        writing.rows.put(row)
    assert len(writing.rows) == 20_000
    writing.write()
    assert writing.read() == [(n, (key, "str"), category) for n, key, category in expected]


@compiled
def test_a_dictionary_that_was_lost_is_repeated_after_forget():
    writing = Writing(CompiledForm, table_of(["category", "key"]))
    header, key_header = writing.data, writing.keys
    for _ in range(2):
        writing.rows.put(("a", ("x", 1)))
        writing.data, writing.keys = header, key_header  # what was written before is gone
        writing.write()
        writing.form.forget([writing.stream, writing.key_stream])
    assert writing.read() == [("a", ("('x', 1)", "tuple"))]


@compiled
def test_keys_met_again_after_they_were_forgotten_are_told_apart_from_others():
    writing = Writing(CompiledForm, table_of(["key"]))
    expected = []
    for number in range(6):
        for key in (f"k{number}", "again"):
            writing.rows.put((key,))
            expected.append(((key, "str"),))
        writing.write()
        if number % 2:
            writing.form.forget_keys()
            assert writing.form.key_count == 0
    assert writing.read() == expected


@compiled
def test_a_value_that_puts_rows_while_it_is_shown_hurts_no_other():
    writing = Writing(CompiledForm, table_of(["category", "key", "text"]))

    class Busy:
        def __str__(self):
            writing.rows.put(("inner", "k", "t"))
            return "busy"

    writing.rows.put(("outer", Busy(), Busy()))
    writing.write()
    assert writing.read() == [("outer", ("busy", "Busy"), "busy"), *[("inner", ("k", "str"), "t")] * 2]


@compiled
def test_threads_that_put_at_the_same_time_lose_nothing():
    writing = Writing(CompiledForm, table_of(["int64", "key", "category"]))

    def put_all(thread):
        for number in range(5_000):
            writing.rows.put((number, (str(thread), number), f"{thread}-{number % 300}"))

    threads = [threading.Thread(target=put_all, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        writing.write()
    writing.write()
    expected = {
        (number, (f"('{thread}', {number})", "tuple"), f"{thread}-{number % 300}")
        for thread in range(4)
        for number in range(5_000)
    }
    read = writing.read()
    assert len(read) == 20_000
    assert set(read) == expected


@compiled
def test_a_key_that_cannot_be_hashed_is_shown_like_any_other():
    writing = Writing(CompiledForm, table_of(["key"]))
    for _ in range(2):
        writing.rows.put((["x"],))
    writing.write()
    assert writing.read() == [(("['x']", "list"),)] * 2


def test_the_oldest_rows_are_dropped_beyond_a_limit():
    rows = Rows(table_of(["int64", "int64"]))
    for number in range(100):
        rows.put((number, 0))
    assert rows.drop_oldest(200) == 0
    assert rows.drop_oldest(199) == 51
    assert rows.take()[0][::2] == list(range(51, 100))


@pytest.mark.parametrize("name", TABLES)
def test_every_table_of_the_schema_can_be_encoded(name):
    table = TABLES[name]
    writing = Writing(CompiledForm, table)
    nothing = (None,) * len(table.columns)
    writing.rows.put(nothing)
    writing.write()
    assert writing.read() == [nothing]


@compiled
def test_the_compiled_form_is_used_where_it_was_built(monkeypatch):
    assert type(rows_module.best_form(key_text)) is CompiledForm
    monkeypatch.setattr(rows_module, "compiled", None)
    assert type(rows_module.best_form(key_text)) is PythonForm
