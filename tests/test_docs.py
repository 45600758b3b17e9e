"""What the documents say of the code: names that exist, floors that are kept, catalogues that are whole."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from test_floors import FLOORS, INSIDE

from benchmarks.shared.markdown import HOW, asked
from fwbench import pipeline, stage
from fwbench.problems import collections, registry
from fwbench.problems.registry import BestKnown

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "ARCHITECTURE.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("decisions/*.md"))]
sys.path.insert(0, str(DOCS))
import generate  # noqa: E402


def table(text, after):
    """The floors of a table of ARCHITECTURE.md: names of the second column, line by line."""
    lines = text[text.index(after) :].split("\n\n")[0].splitlines()[2:]
    return [set(re.findall(r"`(\w+)`", line.split("|")[2])) for line in lines]


@pytest.mark.parametrize(
    ("after", "floors"), [("| floor | modules", FLOORS), ("| floor in `solvers/`", INSIDE["solvers"])]
)
def test_the_map_shows_the_floors_that_are_kept(after, floors):
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert table(text, after) == [set(names.split()) for names in floors]


def test_the_map_is_short():
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 60


def ends(name):
    """Whether a name in backticks is the end of a path in the repository."""
    folders = ("fwbench", "problems", "solvers", "benchmarks", "tests", "examples", "docs")
    return any(str(path).endswith(f"/{name}") for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    named = set(re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")))
    assert not {name for name in named if not ends(name)}


def links(text):
    return [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]


REPORTS = [path for path in sorted((ROOT / "reports").glob("*/*.md")) if path.parent.name != "latest"]
LINKED = ["README.md", "ARCHITECTURE.md", "reports/README.md", *(str(path.relative_to(ROOT)) for path in REPORTS)]


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):  # those of the site are Sphinx's to check
    page = ROOT / page
    missing = [link for link in links(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_the_index_of_reports_has_a_line_for_each():
    text = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    shown = {Path(link).parent.name for link in links(text)}
    assert shown == {path.parent.name for path in (ROOT / "reports").glob("*/index.md")} - {"latest"}
    for line in text.splitlines():
        if line.startswith("| ["):
            assert line.count("|") == 6, line


def test_reports_lead_to_the_site_where_they_lead_to_docs(tmp_path):
    page = tmp_path / "reports" / "one" / "index.md"
    page.parent.mkdir(parents=True)
    (tmp_path / "reports" / "README.md").touch()
    page.write_text("[`fw`](../../docs/solvers.md#fw), [two](../two/index.md)")
    generate.copy_reports(tmp_path / "reports", tmp_path / "docs" / "reports")
    copied = tmp_path / "docs" / "reports" / "one" / "index.md"
    assert copied.read_text() == "[`fw`](../../solvers.md#fw), [two](../two/index.md)"


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_read_in_three_minutes():
    assert len(README.splitlines()) <= 90


def test_the_readme_names_every_stage_and_preset():
    named = set(re.findall(r"`(\w+)`", README[README.index("## Solvers") :]))
    own = {name for name, kind in pipeline.load_solvers().items() if kind.__module__.startswith("fwbench.solvers.")}
    assert own | {*pipeline.presets()} <= named


def lines_of(text):
    """The cells of each line of the tables in a text."""
    lines = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("|"))
    return [[cell.replace("*", "").strip() for cell in line] for line in lines]


def readme_table(begins):
    part = README[README.index(begins) :].split("\n\n")
    return lines_of(next(text for text in part if text.startswith("|")))[2:]


def test_the_readmes_distances_are_the_reports():
    text = (ROOT / "reports/bounds/index.md").read_text(encoding="utf-8")
    head = next(line for line in lines_of(text) if line[0] == "Method")
    report = {line[0]: dict(zip(head, line, strict=True)) for line in lines_of(text) if len(line) == len(head)}
    for method, *cells in readme_table("**How far each method"):
        assert cells == [report[method][column] for column in ("All", "o_proj", "gate_proj")], method


def test_the_readmes_block_is_the_reports():
    text = (ROOT / "reports/block07/index.md").read_text(encoding="utf-8")
    block = lines_of(text[text.index("## smollm2") :].split("\n\n")[1])
    report = {line[0]: dict(zip(block[0], line, strict=True)) for line in block}
    for method, *cells in readme_table("**One block"):
        assert cells == [report[method.strip("`")][column] for column in ("Ratio to Wanda", "Gap", "Seconds")], method


def test_the_readmes_perplexities_are_the_reports():
    text = (ROOT / "reports/prune/index.md").read_text(encoding="utf-8")
    part = text[text.index("## Mask only") :]
    for method, *cells in readme_table("**A whole model"):
        method, sequential, _ = method.split(": ")[-1].partition(", in sequence")
        parts = r", correct=0\.3(, residual=0\.3)?(, true sequential)? \(sequential\)"
        made_good = re.compile(re.escape(method) + parts)
        for pattern, cell in zip(("0.5", "0.6", "2:4"), cells, strict=True):
            blocks = [block.split("\n\n")[0] for block in part.split(f"### {pattern}\n")[1:3]]
            lines = [line for block in blocks for line in lines_of(block)]
            [line] = [line for line in lines if (made_good.match(line[0]) if sequential else line[0] == method)]
            assert list(map(float, cell.split(" / "))) == pytest.approx(list(map(float, line[1:3])), abs=0.051), method


@pytest.mark.parametrize("page", sorted((ROOT / "reports").glob("*/index.md")), ids=lambda page: page.parent.name)
def test_a_report_begins_with_its_question_and_answer_and_ends_with_how(page):
    if page.parent.name in ("block07", "latest"):  # fwbench report writes them: sentences first, the glossary last
        return
    question, answer = asked(page.parent.name)
    text = page.read_text(encoding="utf-8")
    assert question
    assert text.split("\n\n")[1] == f"**{question}** {answer}"
    assert text.count(f"\n{HOW}\n") == 1


def test_the_tutorial_shows_every_example():
    shown = re.findall(
        r"\{literalinclude\} \.\./(examples/\w+\.py)", (DOCS / "tutorial.md").read_text(encoding="utf-8")
    )
    assert {ROOT / path for path in shown} == set((ROOT / "examples").glob("*.py"))


def test_the_catalogue_has_every_stage_under_its_role():
    text = "\n".join(generate.solvers())
    parts = {part.split("\n")[0]: part for part in re.split(r"^## ", text, flags=re.M)[1:]}
    assert list(parts) == [str(role) for role in stage.Role]
    for kind in pipeline.load_solvers().values():
        section = re.split(r"^### ", parts[kind.role], flags=re.M)[1:]
        (own,) = (part for part in section if part.startswith(f"{kind.name}\n"))
        for name, value in stage.parameters(kind).items():
            assert f"`{name}={value}`" in own, own
        for package in map(pipeline.package, kind.requires):
            assert f"`{package}`" in own
    assert all(f"| `{name}` | `{spec}` |" in "\n".join(generate.presets()) for name, spec in pipeline.presets().items())


def test_the_catalogue_has_every_problem():
    lines = [line for line in generate.problems() if line.startswith("| `")]
    names = {problem.name for _, problem in collections.load("mini")}
    names |= {entry.name for entry in registry.best_known().values()} | {item.name for item in collections.catalog()}
    names = {name.removeprefix("mini.") for name in names}
    assert sorted(line.split("`")[1] for line in lines) == sorted(names)


@pytest.mark.parametrize(
    ("n", "upper", "lower", "said"),
    [(192, 2.0, 2.0, "easy"), (193, 2.0, 2.0, "hard"), (16, 2.0, 1.9, "open"), (16, 2.0, None, "open")],
)
def test_status_follows_the_rule_on_the_page(n, upper, lower, said):
    assert generate.status(BestKnown("a", "", 1, n, "0.5", upper, verified=lower)) == said


def test_spectrum_of_matrices_that_are_known():
    assert generate.spectrum(np.eye(8)) == ("1.0e+00", "8.0")
    assert generate.spectrum(np.ones((4, 4))) == ("singular", "1.0")
    assert generate.spectrum(np.diag([1.0, 1e-2])) == ("1.0e+02", "1.1")  # exp of 0.0555, by hand
