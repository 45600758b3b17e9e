"""Citations: what is written is true after rounding, says how it is known, and compiles."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from oracles import relaxed_minimum

from fwbench import bounds, cite, pipeline, verify
from fwbench.cite import CiteError, Claim, document, downward, papers, percent, sentence, upward
from fwbench.problems import registry, synthetic
from fwbench.result import Proof
from fwbench.store import Store

CLAIM = Claim(
    problem="smollm2.07.v_proj_50%&#",
    hash="0123456789abcdef" * 4,
    pattern="2:4",
    rows=192,
    n=576,
    solver="wanda+fw(convexify=shared,steps=2000)+round+swap",
    error=12.3456789,
    lower=11.7777777,
    proof=Proof.VERIFIED,
    bound_by="bound",
    meta={"model": "smollm2", "calibration": "lee sha256:5d first 65536 tokens"},
)


def test_numbers_stay_true():
    for value in np.random.default_rng(0).lognormal(0, 9, 300):
        assert Decimal(upward(value)) >= Decimal(value) >= Decimal(downward(value))
        assert float(upward(value)) == pytest.approx(value, rel=1e-5)
    assert (upward(0.0), downward(None), downward(0.5)) == ("0", "–", "0.500000")
    assert upward(0.1 + 0.2) == "0.300001"
    assert [percent(gap) for gap in (None, 0.0, 1e-12, 1e-6, 0.00371, 0.0471, 0.5, 1.0)] == [
        "–",
        "0 %",
        "0 %",
        "0.01 %",
        "0.38 %",
        "4.8 %",
        "50.0 %",
        "100.0 %",
    ]


def test_a_bound_below_zero_says_nothing_of_better_masks():
    below = replace(CLAIM, lower=-1.25)
    words = document([below])
    assert (
        "has error 12.3457 and how much better another may be is open: no mask has an error below \\-1.25000" in words
    )
    assert "not every verified bound is above 0" in document([below, CLAIM])


def test_a_sentence_says_what_is_known_and_how():
    words = document([CLAIM])
    assert "`smollm2.07.v_proj_50%&#` (192 × 576 weights, pattern 2:4, problem 0123456789ab)" in words
    assert "has error 12.3457 and none is better by more than 4.6 %" in words
    assert "no mask has an error below 11.7777 (verified: the certificate of `bound`" in words
    assert "fwbench 0.1.0 [fwbench]" in words
    claimed = document([replace(CLAIM, proof=Proof.CLAIMED, bound_by="gurobi")])
    assert "(claimed by `gurobi` [gurobi], not verified)" in claimed
    assert "rump2006verification" not in claimed
    assert "no lower bound is known" in document([replace(CLAIM, proof=Proof.NONE, lower=None, bound_by="")])
    assert "and is optimal: no mask" in document([replace(CLAIM, lower=CLAIM.error)])
    assert replace(CLAIM, error=0.0, lower=0.0).optimal


def test_many_problems_share_a_sentence():
    best = replace(CLAIM, problem="mini.a", lower=CLAIM.error)
    unknown = replace(CLAIM, problem="mini.b", lower=None, proof=Proof.NONE)
    words = document([best, CLAIM, unknown]).split("\n\n")
    assert words[0].startswith("On 3 problems of mini and smollm2 in fwbench 0.1.0")
    assert "1 of the best masks are optimal" in words[0]
    assert "lower than theirs by more than 4.6 % (median 2.3 %) on the 2 problems that have a verified" in words[0]
    assert words[1].count("\n") == 4
    assert "no lower bound is verified" in document([unknown, unknown])


def test_references():
    assert papers("wanda+fw(convexify=shared)+round+swap")[0] == [
        "sun2024wanda",
        "roux2025sparsefw",
        "frank1956algorithm",
        "jaggi2013revisiting",
        "billionnet2009qcr",
        "helmberg1996interior",
        "zimmer2025sparseswaps",
    ]
    assert papers("fw+round(method=expectation)")[0][-1] == "ageev2004pipage"
    assert papers("sparsegpt(order=loss)")[0] == ["frantar2023sparsegpt", "su2026rose"]
    assert papers("sparsegpt(order=diagonal)")[0] == ["frantar2023sparsegpt"]
    assert papers("wanda+mine(a=1)") == (["sun2024wanda"], ["mine"])
    assert papers("Ada, by hand") == ([], ["Ada, by hand"])
    text = cite.bibtex([CLAIM])
    for key in ("fwbench", "sun2024wanda", "allal2025smollm2", "lee2005empirical", "rump2006verification"):
        assert text.count(f"{{{key},") == 1
    assert "sparsegpt" not in text
    assert "gemma" not in text
    other = cite.bibtex([replace(CLAIM, meta={**CLAIM.meta, "model": "gemma3"})])
    assert ("{gemma2025gemma3," in other, "smollm2" in other) == (True, False)
    assert "tsenor" not in text
    assert "{meng2025tsenor," in cite.bibtex([replace(CLAIM, pattern="transposable:2:4")])
    assert "% no paper is known here of mine" in cite.bibtex([replace(CLAIM, solver="mine")])


def test_the_table_of_papers_is_whole():
    named = {key for found in cite.PAPERS.values() for key in found} | {cite.CHECKER, *cite.CONVEX, *cite.EXPECTATION}
    named |= {*cite.REORDERED, *cite.TRANSPOSABLE}
    assert named | {*cite.MODELS.values(), "lee2005empirical"} == set(cite.ENTRIES)
    source = Path(cite.__file__).with_name("cite.bib").read_text("utf-8")
    assert len(cite.ENTRIES) == source.count("\n@") + 1
    assert source.isascii()
    for entry in cite.ENTRIES.values():
        assert entry.count("{") == entry.count("}")
        assert all(f"  {field} = " in entry for field in ("author", "title", "year"))


def test_every_stage_with_a_source_is_known():
    """Whoever adds a solver with a paper adds the paper."""
    lacking = [name for name, stage in pipeline.load_solvers().items() if stage.source and name not in cite.PAPERS]
    own = [name for name in lacking if pipeline.load_solvers()[name].__module__.startswith("fwbench.solvers")]
    assert own == [], "add their papers to fwbench/cite.bib, and the stages to PAPERS in fwbench/cite.py"


def test_a_store(tmp_path):
    problem = synthetic.correlated(rows=2, n=16)
    path = tmp_path / "s.sqlite"
    proof = bounds.certificate(problem, relaxed_minimum(problem)[1], source="fw(convexify=shared)")
    with Store(path) as store:
        for solver in ("magnitude", "wanda"):
            store.add(pipeline.run(problem, pipeline.resolve(solver)), problem=problem)
        store.add_certificate(proof, verify.check(problem, proof).bound)
        best = min(store.results(), key=lambda row: row.error)
    (claim,) = cite.claims(str(path))
    assert (claim.solver, claim.error, claim.hash) == (best.solver, best.error, problem.hash)
    assert (claim.proof, claim.bound_by) == (Proof.VERIFIED, "fw(convexify=shared)")
    assert 0 < claim.lower < claim.error
    with Store(tmp_path / "empty.sqlite"):
        pass
    with pytest.raises(CiteError, match="has no solved row"):
        cite.claims(str(tmp_path / "empty.sqlite"))


def test_a_problem_of_the_registry(tmp_path, monkeypatch):
    problem = synthetic.correlated(rows=2, n=16)
    monkeypatch.setattr(cite.collections, "one", lambda what: ("mini", problem))
    registry.save({}, tmp_path)
    with pytest.raises(CiteError, match="the registry has no mask of it"):
        cite.claims("mini/x", tmp_path)
    keep = ~problem.pattern.prune(np.arange(32.0).reshape(2, 16))
    entries = registry.improve({}, problem, "wanda", keep=keep, lower=1e-3, proof=Proof.CLAIMED)
    registry.save(entries, tmp_path)
    (claim,) = cite.claims("mini/x", tmp_path)
    assert (claim.error, claim.lower, claim.proof, claim.bound_by) == (
        problem.error(keep),
        1e-3,
        Proof.CLAIMED,
        "wanda",
    )


def test_no_solver_is_imported():
    code = "import sys, fwbench.cite; print([m for m in sys.modules if m in ('torch', 'fwbench.solvers', 'numba')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_latex_escapes():
    words = document([CLAIM], "latex")
    assert r"smollm2.\allowbreak{}07.\allowbreak{}v\_proj\_50\%\&\#" in words
    assert r"~\cite{sun2024wanda,roux2025sparsefw" in words
    assert r"\toprule" in words


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_the_table_fits_the_page(tmp_path):
    """Names, patterns and specs as long as real ones, in article's narrow columns."""
    long = replace(CLAIM, problem="mini.n032.v_proj.top-target.unstructured:0.5", pattern="unstructured:0.5")
    found = [long, replace(long, problem="smollm2.07.gate_proj", solver="push(rounds=20)+round+swap+safeguard")]
    (tmp_path / "a.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,textcomp}\\usepackage[T1]{fontenc}\\begin{document}\n"
        f"{document(found, 'latex')}\\end{{document}}\n"
    )
    line = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(tmp_path):
    """pdflatex and bibtex, without an undefined citation, with every entry used."""
    solvers = "+".join(cite.PAPERS)
    found = [replace(CLAIM, solver=solvers), replace(CLAIM, lower=None, proof=Proof.NONE, solver="Ada ~ \\ {}")]
    body = "\n\n".join(document([claim], "latex") for claim in found) + "\n\n" + document(found, "latex")
    (tmp_path / "fw.bib").write_text(document(found, "bibtex"))
    (tmp_path / "a.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,textcomp,url}\\usepackage[T1]{fontenc}\\begin{document}\n"
        f"{body}\\bibliographystyle{{plain}}\\bibliography{{fw}}\\end{{document}}\n"
    )
    log = ""
    for program in ("pdflatex", "bibtex", "pdflatex", "pdflatex"):
        line = [program, "a"] if program == "bibtex" else [program, "-interaction=nonstopmode", "-halt-on-error", "a"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
        assert program != "bibtex" or "Warning" not in done.stdout, done.stdout
        log = done.stdout
    assert "undefined" not in log
    assert (tmp_path / "a.pdf").stat().st_size > 10_000
    used = set(re.findall(r"\\bibitem\{(\w+)\}", (tmp_path / "a.bbl").read_text()))
    assert used >= {"fwbench", "gurobi", "rump2006verification", "sun2024wanda"}
    assert sentence(found[:1], cite._Latex())
