"""The data dictionary is complete and keeps its own rules."""

import pytest

from recup.schema import TABLES

COLUMNS = [(table, column) for table in TABLES.values() for column in table.columns]
UNIT_SUFFIXES = {
    "ns": "_ns", "s": "_s", "bytes": ("_bytes", "nbytes"), "bit/s": "_bits_per_s",
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_table_says_what_one_row_is(table):
    assert table.meaning.startswith("One row per ")
    assert table.step in (1, 2, 3, 4, 5)
    assert set(table.sort) <= set(table.column_names)


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=lambda each: each.name)
def test_a_column_says_what_it_means_and_carries_its_unit(table, column):
    assert column.meaning
    if column.unit:
        assert column.name.endswith(UNIT_SUFFIXES[column.unit]), "the unit stands in the name"


def test_names_are_used_once():
    for table in TABLES.values():
        assert len(set(table.column_names)) == len(table.columns)
