"""CSV: no text from outside is a formula in a spreadsheet, and what was written is read back as it was."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwbench import sheet

FORMULAS = ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_would_run_does_not(text):
    [_, [cell, number]] = csv.reader(io.StringIO(sheet.write(["name", "number"], [[text, -1.5]]), newline=""))
    assert cell == f"'{text}"
    assert number == "-1.5"  # a number is no formula


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(FORMULAS)), max_size=5))
def test_texts_come_back(rows):
    columns, found = sheet.read(sheet.write(["a", "b"], rows))
    assert columns == ["a", "b"]
    assert [tuple(row.values()) for row in found] == rows


def test_numbers_and_nothing():
    text = sheet.write(["a", "b", "c"], [[0.1 + 0.2, None, 3], [-1e-300, "x, y", True]])
    assert text == 'a,b,c\n0.30000000000000004,,3\n-1e-300,"x, y",True\n'


def test_an_uneven_line():
    for text in ("a,b\n1,2\n3\n", "a,b\n1,2\n3,4,5\n"):
        with pytest.raises(ValueError, match="line 3 has not as many cells as the header"):
            sheet.read(text)
