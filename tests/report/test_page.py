"""The page renders whatever the rows hold, harmlessly, and is one file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import make_rows
import pytest

from fwbench.report import latex, page, rows, summary, text, view
from fwbench.result import Proof, Status, Verdict

result = make_rows.result
VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


def failures():
    blank = {"error": None, "ratio_to_wanda": None, "relative_error": None, "seconds": None}
    bad = {"status": Status.FAILED, "verdict": Verdict.NONE, **blank}
    return [result("a", solver, reason="raised ValueError: no", **bad) for solver in ("one", "two")]


def unknown():
    blank = dict.fromkeys(("error", "relative_error", "ratio_to_wanda", "relaxed_error", "seconds", "lower_bound"))
    return [result("a", "wanda", **blank, machine={}, meta={}, created="", collection="")]


def zeros():
    zero = {"error": 0.0, "relative_error": 0.0, "lower_bound": 0.0, "proof": Proof.VERIFIED, "seconds": 0.0}
    return [result("a", "wanda", **zero), result("a", "fw", **zero, ratio_to_wanda=0.0)]


STORES = {
    "nothing": list,
    "one": lambda: [result()],
    "failures": failures,
    "skipped": lambda: [result(status=Status.SKIPPED, verdict=Verdict.NONE, error=None, reason="too large")],
    "unknown": unknown,
    "zeros": zeros,
    "hostile": make_rows.hostile,
    "contradiction": lambda: [result(error=0.5), result(solver="fw", lower_bound=0.9, proof=Proof.VERIFIED)],
    "one problem": lambda: make_rows.many()[:11],
    "many problems": lambda: [result(f"p{i}", "fw", lower_bound=0.1, proof=Proof.VERIFIED) for i in range(60)],
    "many": make_rows.many,
}


class Checker(HTMLParser):
    """Balance, and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.words: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture(scope="module", params=STORES)
def written(request, tmp_path_factory):
    joined = rows.join(STORES[request.param]())
    folder = tmp_path_factory.mktemp("report")
    index = page.write(joined, folder, title="A <b>title</b>")
    assert index == folder / "index.html"
    return SimpleNamespace(name=request.param, rows=joined, folder=folder)


def test_html_is_balanced_harmless_and_whole(written):
    source = (written.folder / "index.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(source)
    checker.close()
    assert checker.open == []
    assert not checker.seen & {"script", "b-title", "iframe", "object"}
    assert "img" not in checker.seen
    assert not re.search(r"""(?:src|href)=["'](?:https?:|//|data:)""", re.sub(r'xmlns(:\w+)?="[^"]*"', "", source))
    assert len(checker.ids) == len(set(checker.ids))
    assert not re.search(r"\b(nan|None|inf|NaN)\b", " ".join(checker.words))


def test_markdown_tables_are_tables(written):
    source = (written.folder / "index.md").read_text(encoding="utf-8")
    assert "<script" not in source
    assert "<img" not in source
    assert not re.search(r"\b(nan|None|NaN)\b", source)
    tables = re.findall(r"(?:^\|.*\|$\n?)+", source, flags=re.MULTILINE)
    for table in tables:
        lines = table.strip().splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert re.fullmatch(r"\|(-+:?\|)+", lines[1])
    assert len(tables) >= (2 if written.rows else 0)
    for figure in re.findall(r"\]\((figures/[^)]*)\)", source):
        assert (written.folder / figure).stat().st_size > 1000


def test_latex_has_no_bare_special_character(written):
    source = (written.folder / "solvers.tex").read_text(encoding="utf-8")
    macros = latex.macros(written.rows)
    assert source.count("\\newcommand") == len(macros)
    assert all(re.fullmatch("[A-Za-z]+", name) for name in macros)
    for value in macros.values():
        assert not re.search(r"(?<!\\)[%$#&_^~<>|]", value)


def test_contradictions_come_first():
    context = page.build(rows.join(STORES["contradiction"]()))
    source = page.html(context)
    assert 0 < source.index("<h2>Contradictions") < source.index("<h2>What ran where")
    assert "## Contradictions" in page.markdown(context)
    assert "1 problem with contradictory values left out" in source
    assert "Contradictions" not in page.html(page.build(rows.join([result()])))


def test_sentences_say_what_the_rows_say():
    first, second, third = view.sentences(rows.join(make_rows.many()))
    assert first == "11 solvers ran on 17 problems of smollm2-block7, mini in 187 runs: 1 failed and 7 declined."
    assert second.startswith("The best masks are those of wanda+fw(convexify=shared,steps=2000)")
    assert "17 of 17 problems" in third
    assert view.sentences([]) == ["There is no run to report on."]
    assert "2 failed" in view.sentences(rows.join(failures()))[0]


def test_drifted_runs_are_counted_and_left_out():
    slow = {"reference_before": 1.0, "reference_after": 9.0}
    found = [result("a", "fw", seconds=100.0, timing=slow), result("b", "fw", seconds=1.0)]
    (group,) = summary.groups(rows.join(found))
    assert group.solvers[0].seconds == pytest.approx(1.0)
    assert "1 run left out of the seconds" in view.solver_table(group).note


def test_records_beyond_the_registry():
    one = result(error=1.0, lower_bound=0.6, proof=Proof.VERIFIED)
    entry = SimpleNamespace(upper=2.0, lower=0.5, proof=Proof.VERIFIED, lower_by="fw")
    registry = {one.problem_hash: entry}
    joined = rows.join([one], best_known=registry)
    lines = view.record_table(joined, registry).lines
    assert [line[1:4] for line in lines] == [("mask", "2.00000", "1.00000"), ("bound", "0.500000", "0.600000")]
    assert "best-known values of 1 of these 1 problem" in page.html(page.build(joined, registry=registry))


def test_devices_are_told_apart():
    found = [result(), result(device="cuda", dtype="float64", key="other")]
    assert {summary.label(row) for row in rows.join(found)} == {"wanda", "wanda @cuda @float64"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (float("nan"), "–"), (float("inf"), "∞"), (0.0, "0"), (0.6114, "0.611"), (1.0, "1.00"),
        (12.345, "12.3"), (12345.0, "12345"), (1.5e7, "1.50e7"),
        (2e-5, "2.00e−5"), (-0.25, "−0.250"), (0.0999999, "0.100"),
    ],
)  # fmt: skip
def test_numbers(value, shown):
    assert text.number(value) == shown


def test_other_texts():
    assert text.percent(0.1234) == "12.3 %"
    assert text.percent(0.00123) == "0.12 %"
    assert text.seconds(0.0042) == "4.2 ms"
    assert text.seconds(3.14159) == "3.14 s"
    assert text.clip("abcdefghij", 5) == "abcd…"
    assert text.clip("abcdefghij", 5, middle=True) == "ab…ij"
    assert text.clean("a\u202eb\n\tc\x00") == "a b c"
    assert text.markdown("1. a_b _c_ | <x> `y`") == r"1\. a_b \_c\_ &#124; &lt;x&gt; \`y\`"
    assert text.markdown("0.611") == "0.611"


def test_latex_escapes_and_names():
    assert latex.escape(r"a\b_{c}%") == r"a\textbackslash{}b\_\{c\}\%"
    assert latex.escape("é ≤ 中") == "é ? ?"
    assert latex.macro_name("mini", "2:4", "wanda+swap", "Gap") == "fwbMiniTwoFourWandaSwapGap"
    taken: set[str] = set()
    (group,) = summary.groups(rows.join([result("a", "f.w"), result("a", "f-w")]))
    latex.table(group, taken)
    assert len(taken) == 16


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
@pytest.mark.parametrize("store", ["many", "hostile"])
def test_latex_compiles(store, tmp_path):
    (tmp_path / "solvers.tex").write_text(latex.document(rows.join(STORES[store]())), encoding="utf-8")
    packages = r"\usepackage[T1]{fontenc}\usepackage{textcomp}\usepackage{booktabs}"
    main = r"\documentclass{article}" + packages + r"\begin{document}\input{solvers}\end{document}"
    (tmp_path / "main.tex").write_text(main, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:]


def test_reports_load_neither_torch_nor_solvers_nor_unneeded_matplotlib():
    code = (
        "import sys, fwbench.report, fwbench.report.page, fwbench.report.rows as r, fwbench.store\n"
        "fwbench.report.page.html(fwbench.report.page.build([]))\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'matplotlib') or 'fwbench.solvers' in m]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
