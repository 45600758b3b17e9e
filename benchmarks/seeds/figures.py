"""The figures of the page of seeds, each from the CSV files of other reports; None where the lines are not there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean as average

from benchmarks.convergence.swaps import SWAPS_CSV, Limited
from benchmarks.first_order.study import ALPHA_CSV, CURVES_CSV, Alpha, CurvePoint
from benchmarks.learned.steps import STEPS_CSV, Step
from benchmarks.learned.study import BOUNDS_CSV, OWN
from benchmarks.learned.study import Line as Diagonal
from benchmarks.momentum.study import MOMENTUM_CSV, Measured
from benchmarks.prune.trimmed import TRIMMED_CSV
from benchmarks.prune.trimmed import Line as Outliers
from benchmarks.prune.trimmed_page import MOST, NOTHING
from benchmarks.sampling.study import SAMPLING_CSV
from benchmarks.sampling.study import Line as Drawn
from benchmarks.shared.csv_lines import read, read_rows
from benchmarks.theory.page import excess, short
from benchmarks.theory.study import ROWS_CSV, Row
from fwbench.metrics import shifted_geometric_mean as mean

FIELD = Path("field") / "methods.csv"
FIELD_MODEL, FIELD_PATTERN = "smollm2", "0.6"


def over_wanda(reports: Path, spec: str) -> float | None:
    """Mean error over Wanda's on the problems of the report on masks."""
    rows = read_rows(reports / "masks" / "problems.csv")
    values = [float(row["ratio_to_wanda"]) for row in rows if row["solver"] == spec]
    return mean(values) if values else None


def sparsefw(reports: Path) -> str | None:
    own, rival = (over_wanda(reports, spec) for spec in ("sparsefw", "wanda+swap"))
    if own is None or rival is None:
        return None
    text = f"{own:.3f} of Wanda's error, SparseSwaps {rival:.3f} ([masks](../masks/index.md))"
    best = [_best_alpha(group) for group in _by_layer(read(reports / "first_order" / ALPHA_CSV, Alpha))]
    below = sum(alpha < 0.9 for alpha in best)
    cells = f"{below} of {len(best)} cells of layer and pattern"
    return f"{text}; an `alpha` below 0.9 is best in {cells} ([first_order](../first_order/index.md))"


def _by_layer(lines: Iterable[Alpha]) -> list[list[Alpha]]:
    found: dict[tuple[str, str, str], list[Alpha]] = {}
    for line in lines:
        if line.rank == "wanda" and line.pattern != "2:4":  # where 0.9 can be told from 0.5
            found.setdefault((line.layer, line.pattern, line.rank), []).append(line)
    return list(found.values())


def _best_alpha(lines: Iterable[Alpha]) -> float:
    return min(lines, key=lambda line: line.error).alpha


def sparseswaps(reports: Path) -> str | None:
    own = over_wanda(reports, "wanda+swap")
    lines = [line for line in read(reports / "convergence" / SWAPS_CSV, Limited) if line.start == "wanda"]
    if own is None or not lines:
        return None
    ends = {limit: mean(line.over_start for line in lines if line.limit == limit) for limit in (20, 100, 0)}
    made = average(line.swaps for line in lines if not line.limit)
    return (
        f"{own:.3f} of Wanda's error ([masks](../masks/index.md)); {ends[20]:.3f}, {ends[100]:.3f} and {ends[0]:.3f} "
        f"after 20, 100 and all swaps of a row, {made:.0f} on the mean ([convergence](../convergence/index.md))"
    )


def learned_bound(reports: Path) -> str | None:
    """What the learned diagonal gains of what the best shared one adds to the plain bound."""
    value = {(line.layer, line.pattern, line.method): line for line in _diagonals(reports) if line.n < 1000}
    places = {key[:2] for key in value}
    if not places:
        return None

    def gained(method: str) -> float:
        first, last = "none", "shared, the best"
        parts = []
        for place in places:
            plain = value[*place, first].bound
            parts.append((value[*place, method].bound - plain) / (value[*place, last].bound - plain))
        return 100 * average(parts)

    return (
        f"{gained('learned'):.0f} % of what the best shared diagonal adds to the plain bound, "
        f"{gained('inverse diagonal'):.0f} % without the net, {gained(OWN):.0f} % with a diagonal of each row's own "
        "([learned](../learned/index.md))"
    )


def _diagonals(reports: Path) -> list[Diagonal]:
    return read(reports / "learned" / BOUNDS_CSV, Diagonal)


def momentum(reports: Path) -> str | None:
    lines = read(reports / "momentum" / MOMENTUM_CSV, Measured)
    last = max((line.products for line in lines), default=0)
    own, exact = (
        {line.layer: line.swapped for line in lines if (line.method, line.products) == (method, last)}
        for method in ("momentum, 4/(t+8)^(2/3)", "whole Gram, line search")
    )
    if not own or own.keys() != exact.keys():
        return None
    ratio = mean(own[layer] / exact[layer] for layer in own)
    return (
        f"after {last} products and swaps {ratio:.3f} times the error of Frank-Wolfe with the whole Gram matrix "
        "([momentum](../momentum/index.md))"
    )


def neuroal(reports: Path) -> str | None:
    """Perplexity of Wanda's masks, one-shot at 0.6, the zeros allocated and uniform."""
    folder = reports / "prune"
    key = ("one-shot", "0.6", "wanda")

    def own(name: str, **fixed: str) -> str | None:
        rows = read_rows(folder / name)
        wanted = {"mode": key[0], "pattern": key[1], "method": key[2], **fixed}
        return next((row["lee-heldout"] for row in rows if wanted.items() <= row.items()), None)

    values = [own("allocation.csv", allocation=name) for name in ("neuroal", "exact")] + [own("results.csv")]
    if None in values:
        return None
    allocated, exact, uniform = (float(value or 0) for value in values)
    return (
        f"perplexity {allocated:.1f} of Wanda's masks at 0.6, uniform {uniform:.1f}, `exact` {exact:.1f} "
        "([prune](../prune/index.md))"
    )


def palm(reports: Path) -> str | None:
    own, rivals = field(reports, "wanda+alternate"), {name: field(reports, name) for name in ("wanda+iht", "alps")}
    if own is None:
        return None
    beside = ", ".join(f"`{name}` {value:.3f}" for name, value in rivals.items() if value is not None)
    return f"{own:.3f} of Wanda's error with update, {beside} ([field](../field/index.md))"


def trimmed(reports: Path) -> str | None:
    """What leaving out the most tokens that were tried does to errors on held-out text, at one pattern."""
    lines = [line for line in read(reports / "prune" / TRIMMED_CSV, Outliers) if line.pattern == FIELD_PATTERN]
    plain = {line.key[:-1]: line for line in lines if line.out == NOTHING}
    pairs = [(line, plain[line.key[:-1]]) for line in lines if line.out == MOST and line.key[:-1] in plain]
    if not pairs:
        return None
    ratios = [
        f"{mean(getattr(line, text) / getattr(other, text) for line, other in pairs):.3f}"
        for text in ("lee_heldout", "wikipedia")
    ]
    return (
        f"without {100 * float(MOST):g} % of the tokens {ratios[0]} times the error on `lee.cor`, {ratios[1]} times "
        f"that on Wikipedia, at {FIELD_PATTERN} ([prune](../prune/index.md))"
    )


def nothing(reports: Path) -> str | None:
    return "–"


def bernoulli(reports: Path) -> str | None:
    found: dict[str, list[Drawn]] = {}
    for line in read(reports / "sampling" / SAMPLING_CSV, Drawn):
        found.setdefault(line.spec, []).append(line)
    own, rival = (found.get(spec) for spec in ("wanda+bernoulli", "wanda+fw(variant=vanilla,steps=1000)"))
    if not own or not rival:
        return None
    error = mean(line.relaxed for line in own) / mean(line.relaxed for line in rival)
    seconds = sum(line.seconds for line in own) / sum(line.seconds for line in rival)
    return (
        f"{error:.2f} times the relaxed error of Frank-Wolfe in {seconds:.0f} times its time "
        "([sampling](../sampling/index.md))"
    )


def relaxation(reports: Path) -> str | None:
    """How much the relaxation and its top-k rounding lose on real rows."""
    lines = [line for line in read(reports / "theory" / ROWS_CSV, Row) if line.optimum < float("inf")]
    real = [line for line in lines if line.family == "mini"]
    if not real:
        return None
    ratio = sum(line.optimum for line in real) / sum(line.relaxed for line in real)
    return (
        f"least error over the relaxation's {ratio:.2f} in {len(real)} cases of real rows; top-k "
        f"{short(excess(real, 'topk'))} of it above, by Lemma 1 at most {short(excess(real, 'lemma'))} "
        "([theory](../theory/index.md))"
    )


def unrolled(reports: Path) -> str | None:
    lines = read(reports / "learned" / STEPS_CSV, Step)
    own, rival = (
        [line for line in lines if line.method == method]
        for method in ("unrolled", "Frank-Wolfe, line search, 4 times as long")
    )
    if not own or not rival:
        return None
    errors = [mean(line.swapped for line in part) for part in (own, rival)]
    times = [1000 * average(line.seconds for line in part) for part in (own, rival)]
    return (
        f"{errors[0]:.3f} of Wanda's error after swaps in {times[0]:.0f} ms, Frank-Wolfe {errors[1]:.3f} in "
        f"{times[1]:.0f} ms ([learned](../learned/index.md))"
    )


def lookahead(reports: Path) -> str | None:
    return _curves(reports, "fw, in-face, lookahead", "fw, in-face", 1e-2)


def mirror(reports: Path) -> str | None:
    text, drawn = _curves(reports, "mirror", "fw, in-face", 1e-3), _last_gaps(reports, "mirror, 4 blocks at random")
    return text and drawn and text.replace(" (", f"; 4 blocks at random stay at {drawn} (", 1)


def _curves(reports: Path, own: str, rival: str, level: float) -> str | None:
    """Products to a gap, of both, from the least to the most of the problems."""
    mine, other = (reached(_runs(reports, method), level) for method in (own, rival))
    if not mine or not other:
        return None
    parts = []
    if hits := [value for value in mine if value is not None]:
        parts.append(f"{_range(hits, 0)} products to a gap of {level:g}")
    if missed := len(mine) - len(hits):
        parts.append(f"{missed} of {len(mine)} runs end above a gap of {level:g}")
    beside = _range([value for value in other if value is not None], 0)
    return f"{', '.join(parts)}; in-face steps alone {beside} ([first_order](../first_order/index.md))"


def reached(runs: Mapping[str, Sequence[CurvePoint]], level: float) -> list[float | None]:
    """Products with which each run first has a gap; None where it never does."""
    return [next((point.products for point in run if point.primal <= level), None) for run in runs.values()]


def _last_gaps(reports: Path, method: str) -> str:
    return _range([run[-1].primal for run in _runs(reports, method).values()], 2)


def _runs(reports: Path, method: str) -> dict[str, list[CurvePoint]]:
    found: dict[str, list[CurvePoint]] = {}
    for point in read(reports / "first_order" / CURVES_CSV, CurvePoint):
        if point.method == method:
            found.setdefault(point.problem, []).append(point)
    return found


def _range(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def field(reports: Path, spec: str) -> float | None:
    """Mean error over Wanda's in the report on the whole field, of one model and pattern; None without it."""
    values = [
        float(row["ratio"])
        for row in read_rows(reports / FIELD)
        if (row["model"], row["pattern"], row["spec"]) == (FIELD_MODEL, FIELD_PATTERN, spec)
    ]
    return mean(values) if values else None
