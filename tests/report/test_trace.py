"""The figure of convergence: its numbers by hand, its files, its command."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fwbench.report import trace
from fwbench.result import Result, StageRecord, Status, TracePoint, Verdict

PLAIN = (
    TracePoint(0.2, 90.0, 10.0, 0, 50.0),
    TracePoint(0.3, 70.0, 20.0, 10, 30.0),
    TracePoint(0.4, 60.0, 24.0, 20, 25.0),
)


def run(solver: str, moments: tuple = PLAIN, **changes: object) -> Result:
    blank = Result("p", "hash", "c", solver, "key", "0.5", 2, 4, Status.FEASIBLE, Verdict.FEASIBLE)
    stages = (StageRecord("wanda", "start", 0.1, error=80.0), StageRecord("fw", "relax", 0.3, relaxed_error=25.0))
    stages += (StageRecord("round", "round", 0.1, error=40.0),)
    return replace(blank, error=40.0, ratio_to_wanda=0.5, stages=stages, trace=moments, **changes)


def test_gaps_and_errors_by_hand():
    better = (TracePoint(0.5, None, 25.0, 30, 25.5),)
    first, second = trace.curves([run("wanda+fw+round"), run("wanda+fw(variant=pairwise)+round", better)])
    assert [moment.seconds for moment in first.moments] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert first.primal == (None, 1.0, pytest.approx(0.2), None, None)  # to 25, the best bound of both; 0 is not shown
    assert first.gap == (None, pytest.approx(0.8), pytest.approx(1 / 3), pytest.approx(1 / 25), None)
    assert first.error == tuple(map(pytest.approx, (1.0, 90 / 80, 70 / 80, 60 / 80, 0.5)))
    assert second.primal == (None, pytest.approx(0.02), None)


def test_convexified_runs_keep_their_own_reference():
    lifted = (TracePoint(0.2, None, 33.0, 0, 36.3),)
    plain, shared, row = trace.curves(
        [run("wanda+fw+round"), *(run(f"wanda+fw(convexify={kind})+round", lifted) for kind in ("shared", "row"))]
    )
    assert plain.primal[3] == pytest.approx(1 / 24)
    for curve in (shared, row):
        assert [gap for gap in curve.primal if gap is not None] == [pytest.approx(0.1)]


def test_numbers_that_are_none_are_left_out():
    moments = (TracePoint(0.1, float("inf"), None, None, float("nan")), TracePoint(0.2, -1.0, 5.0, 3, 5.0))
    (curve,) = trace.curves([run("wanda+fw+round", moments)])
    shown = [x for values in (curve.primal, curve.gap, curve.error) for x in values if x is not None]
    assert np.isfinite(shown).all()
    assert min(shown) > 0


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"problem_hash": "another"}, "several problems"),
        ({"status": Status.FAILED, "verdict": Verdict.NONE, "reason": "fw raised"}, "fw raised"),
        ({"status": Status.SKIPPED, "verdict": Verdict.NONE, "reason": "needs a licence"}, "needs a licence"),
    ],
)
def test_what_cannot_be_traced_is_refused(second, says):
    with pytest.raises(ValueError, match=says):
        trace.curves([run("wanda+fw+round"), replace(run("wanda+swap"), **second)])


def test_the_panels_show_the_numbers_on_logarithmic_axes():
    found = trace.curves([run("wanda+fw+round"), run("wanda+fw(convexify=shared)+round")])
    axes = trace.draw(found, "p").axes
    assert len(axes) == 6
    assert all(ax.get_xscale() == ax.get_yscale() == "log" for ax in axes)
    assert [ax.get_xlabel() for ax in axes] == ["", "", "", "", "seconds", "iterations"]
    colours = {line.get_color() for ax in axes for line in ax.lines}
    assert len(colours) == 2
    gap_by_iterations = axes[3].lines[0]
    np.testing.assert_allclose(gap_by_iterations.get_xdata(), [10, 20])  # 0 has no logarithm
    np.testing.assert_allclose(gap_by_iterations.get_ydata(), [1 / 3, 1 / 25])
    np.testing.assert_allclose(axes[4].lines[0].get_xdata(), [0.1, 0.2, 0.3, 0.4, 0.5])
    assert [ax.lines[0].get_drawstyle() for ax in axes] == ["default"] * 4 + ["steps-post"] * 2


@pytest.mark.parametrize(
    "solver", ["wanda+fw+round", "wanda+fw(steps=1000,seconds=12.5,variant=pairwise,rounded=True)+swap"]
)
def test_the_legend_stays_inside_and_clear_of_the_axes(solver):
    figure = trace.draw(trace.curves([run(solver) for _ in range(7)]), "p")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    legend = figure.legends[0].get_window_extent(renderer)
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1
    assert all(ax.get_tightbbox(renderer).y0 >= legend.y1 - 1 for ax in figure.axes)


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".png", b"\x89PNG")])
def test_files_repeat(tmp_path, suffix, start):
    found = trace.curves([run("wanda+fw+round")])
    for name in ("a", "b"):
        trace.write(found, tmp_path / "new" / f"{name}{suffix}", "a $ dollar")
    first, second = ((tmp_path / "new" / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert first.startswith(start)
    assert first == second
    if suffix == ".svg":
        assert b"a $ dollar" in first
        assert b"Frank-Wolfe gap" in first


def test_csv_holds_every_moment():
    found = trace.curves([run("wanda+fw+round"), run("wanda+fw(gap=1e-3)+round")])
    lines = list(csv.DictReader(io.StringIO(trace.to_csv(found))))
    assert len(lines) == 10
    assert lines[1]["solver"] == "wanda+fw+round"
    assert [float(lines[1][key]) for key in ("seconds", "upper", "lower", "iterations", "relaxed")] == list(PLAIN[0])
    assert lines[0]["lower"] == ""
    assert float(lines[1]["fw_gap"]) == pytest.approx(0.8)


# --- the command -----------------------------------------------------------------------------------------------------

ONE = "mini/n016.gate_proj.random.0.5"


def test_command_draws_what_the_solvers_did(fwbench, tmp_path):
    specs = ("fw(rounded=True,gap=1e-6)", "fw(variant=vanilla,steps=40)+swap", "push(rounds=3)")
    code, out, err = fwbench("trace", ONE, *(word for spec in specs for word in ("-s", spec)), "-o", "a.svg", "--csv")
    assert code == 0, err
    assert "3 solvers" in out
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert len({line["solver"] for line in lines}) == 3
    last = [line for line in lines if "rounded" in line["solver"] and line["relaxed"]][-1]
    assert float(last["relaxed"]) - float(last["lower"]) <= 1.1e-6 * float(last["relaxed"])
    rounded = [line for line in lines if line["iterations"] and line["upper"]]
    assert rounded
    assert all(float(line["upper"]) >= float(line["lower"]) for line in rounded)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((ONE, "-s", "fw", "-o", "a.gif"), "must end in"),
        ((ONE, "-s", "fww", "-o", "a.svg"), "did you mean"),
        (("mini", "-s", "fw", "-o", "a.svg"), "name one problem"),
        ((ONE, "-o", "a.svg"), "solver"),
        ((ONE, "--pattern", "unstructured:0.5", "-s", "fw(convexify=row)", "-o", "a.svg"), "left no mask to trace"),
    ],
)
def test_command_refuses_in_one_line(fwbench, tmp_path, words, says):
    code, _, err = fwbench("trace", *words)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
