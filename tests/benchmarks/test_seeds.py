"""The page of the methods that this project was created from: all are there, and figures follow the files."""

import csv
import re

import pytest

from benchmarks.seeds import figures, page
from benchmarks.shared.command import REPORTS
from fwbench import pipeline
from fwbench.presets import PRESETS


def test_every_seed_has_a_row_with_its_state_and_finding():
    assert len(page.SEEDS) == 14  # the list that the project began with: SparseFW and thirteen others
    for seed in page.SEEDS:
        assert seed.differs
        assert seed.finding.endswith(".")
        assert seed.state in (page.PUBLISHED, page.CARRIED, page.ASKED, page.REFUSED)
        assert re.fullmatch(r"(\d{4}\.\d{5})?", seed.arxiv)


def test_what_is_named_is_there_or_refused():
    known = pipeline.load_solvers()
    for seed in page.SEEDS:
        for spec in re.findall(r"\[`([^`]+)`\]\(\.\./\.\./docs/solvers\.md#\w+\)", seed.here):
            if seed.state == page.REFUSED:
                with pytest.raises(ValueError, match=re.escape(seed.differs)):
                    pipeline.resolve(spec)
            else:
                assert spec.partition("(")[0] in known
                pipeline.resolve(f"wanda+{spec.replace('blocks=N', 'blocks=4')}")
        assert set(re.findall(r"`(Sparse\w+)`", seed.here)) <= set(PRESETS)
        if seed.field:
            pipeline.resolve(seed.field)


def test_without_files_nothing_is_measured(tmp_path):
    cells = [seed.figure(tmp_path) for seed in page.SEEDS]
    assert set(cells) == {None, "–"}
    assert page.page(tmp_path).count(page.UNKNOWN) >= 10


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_a_row_follows_its_file(tmp_path):
    row = {"mode": "one-shot", "pattern": "0.6", "method": "wanda"}
    write(tmp_path / "prune" / "results.csv", {**row, "lee-heldout": 30.0})
    allocated = [{**row, "allocation": "exact", "lee-heldout": 20.0}]
    write(tmp_path / "prune" / "allocation.csv", *allocated)
    assert figures.neuroal(tmp_path) is None
    allocated.append({**row, "allocation": "neuroal", "lee-heldout": 25.04})
    write(tmp_path / "prune" / "allocation.csv", *allocated)
    assert figures.neuroal(tmp_path).startswith("perplexity 25.0 of Wanda's masks at 0.6, uniform 30.0, `exact` 20.0")


def test_the_report_on_the_field_is_used_where_it_is(tmp_path):
    assert "| Field |" not in page.page(tmp_path)
    line = {"model": "smollm2", "pattern": "0.6", "spec": "wanda+alternate"}
    other = {"model": "gemma3", "pattern": "0.6", "spec": "wanda+alternate", "ratio": 9}
    write(tmp_path / figures.FIELD, {**line, "ratio": 0.25}, {**line, "ratio": 1.0}, other)
    assert figures.field(tmp_path, "wanda+alternate") == pytest.approx(0.5)
    text = page.page(tmp_path)
    assert "| Field |" in text
    assert "0.500 of Wanda's error with update" in text


def test_gaps_that_are_not_reached_are_told():
    def run(*gaps):
        return [figures.CurvePoint("p", 1, 4, "m", i, float(i), 0.0, gap, 0.0) for i, gap in enumerate(gaps)]

    runs = {"a": run(1.0, 0.009), "b": run(1.0, 0.5), "c": run(1.0, 0.5, 0.001)}
    assert figures.reached(runs, 1e-2) == [1.0, None, 2.0]


def test_the_committed_figures_are_there():
    """All that the committed files can say is said."""
    for seed in page.SEEDS:
        assert seed.figure(REPORTS), seed.paper
