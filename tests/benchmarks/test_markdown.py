"""Tables in Markdown, against those that one writes by hand."""

from benchmarks.shared.markdown import least_bold, table


def test_columns_to_the_left_and_to_the_right():
    lines = [("a", "1"), ("b", "2")]
    assert table(("x", "y"), lines) == "| x | y |\n|---|---:|\n| a | 1 |\n| b | 2 |\n"
    assert table(("x", "y"), iter(lines), left=2).splitlines()[1] == "|---|---|"
    assert table(("x", "y"), [], left=0) == "| x | y |\n|---:|---:|\n"


def test_the_least_is_bold_and_what_was_not_measured_a_dash():
    assert least_bold([2.0, 1.25, 1.25], 1) == ["2.0", "**1.2**", "**1.2**"]
    assert least_bold([float("inf"), 3.0], 2) == ["–", "**3.00**"]
