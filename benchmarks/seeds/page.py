"""The page of the methods that this project was created from; every figure from the CSV files of other reports.

    python -m benchmarks.seeds.page

A figure whose lines are not there is "not measured".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.seeds import figures
from benchmarks.seeds.figures import FIELD, FIELD_PATTERN
from benchmarks.shared import command
from benchmarks.shared.markdown import table, write_page
from fwbench.solvers.weight_update.alternate import NONE

UNKNOWN = "not measured"
PUBLISHED, CARRIED, ASKED, REFUSED = "as published", "carried over", "its question", "refused"


def stage(*names: str) -> str:
    """The names with their places in the catalogue."""
    return ", ".join(f"[`{name}`](../../docs/solvers.md#{name.partition('(')[0]})" for name in names)


@dataclass(frozen=True)
class Seed:
    """A method, how it is here and what was found; ``field``: its spec in the report on the whole field."""

    paper: str
    arxiv: str
    here: str
    state: str
    differs: str
    figure: Callable[[Path], str | None]
    finding: str
    field: str = ""


SEEDS = (
    Seed(
        "SparseFW",
        "2510.13713",
        f"presets `SparseFW`, `SparseFW_RIA`; stage {stage('fw')}",
        PUBLISHED,
        "the oracle keeps exactly `k` weights, where the paper's keeps at most `k` and fills up; no public code",
        figures.sparsefw,
        "Behind SparseSwaps at many times the time; its relaxation is worth more solved to the end and swapped.",
        "SparseFW",
    ),
    Seed(
        "SparseSwaps",
        "2512.10922",
        f"presets `SparseSwaps`, `SparseSwaps100`; stage {stage('swap')}",
        PUBLISHED,
        "`SparseSwaps` goes on until no swap helps; the limit of 100 is that of its reviews; no public code",
        figures.sparseswaps,
        "Cheap and strong; rows end by themselves, mostly before the limit, and the start hardly matters.",
        "SparseSwaps",
    ),
    Seed(
        "Learning Based Convex Approximation for Constrained Parametric Optimization",
        "2505.04037",
        f"stage {stage('learned_bound')}",
        CARRIED,
        "the input-convex net does not approximate a value function, it says a diagonal that is then proved",
        figures.learned_bound,
        "It replaces an interior point method where a bound for little time is wanted, and no proof is lost.",
    ),
    Seed(
        "Scion: Training Deep Learning Models with Norm-Constrained LMOs",
        "2502.07529",
        f"stage {stage('momentum')}",
        CARRIED,
        "over the polytope of masks in place of norm balls; batches are of one layer's inputs",
        figures.momentum,
        "Batches are enough, but do not pay where the whole Gram matrix fits into memory.",
        "wanda+momentum+round",
    ),
    Seed(
        "NeuroAL",
        "2411.07066",
        "`fwbench prune --allocation neuroal`",
        PUBLISHED,
        "by Wanda's masks on 2,048 tokens, before any spec; its grid also has 0, which is uniform",
        figures.neuroal,
        "Worse than uniform on this model, as is `owl`; `exact`, which measures what each layer loses, gains much.",
    ),
    Seed(
        "LPAM",
        "2411.06333",
        f"stage {stage('alternate(rule=palm)')}",
        CARRIED,
        "without its learned residual it is PALM with LPAM's safeguard; the network is not trained here",
        figures.palm,
        "It needs no inverse, and the error never rises; for the least error there is `alps`.",
        "wanda+alternate",
    ),
    Seed(
        "A Sample Efficient Alternating Minimization-based Algorithm for Robust Phase Retrieval",
        "2409.04733",
        "`trimmed`, a function of a layer's tokens ([tokens left out](../../docs/solvers.md#tokens-left-out))",
        CARRIED,
        "tokens of large error are the outliers, any solver of masks or weights fits the others; nothing is spectral",
        figures.trimmed,
        "Held-out text has such tokens too: leaving them out is no answer to the over-fit, `--shrink` is.",
    ),
    Seed(
        "Alternating Minimization Schemes for Computing Rate-Distortion-Perception Functions",
        "2408.15015",
        stage("alternate(rule=multiplicative)"),
        REFUSED,
        NONE["multiplicative"],
        figures.nothing,
        "Over masks alone the multiplicative update is that of `mirror`, which is measured below.",
    ),
    Seed(
        "Bypass Back-propagation",
        "2406.10576",
        f"stage {stage('bernoulli')}",
        CARRIED,
        "single weights and a layer's error, where the paper prunes structures by the model's loss",
        figures.bernoulli,
        "Forward evaluations alone do not pay where the exact gradient costs one product.",
        "wanda+bernoulli+round",
    ),
    Seed(
        "Convex Relaxations of ReLU Neural Networks Approximate Global Optima in Polynomial Time",
        "2402.03625",
        "[theory](../theory/index.md)",
        ASKED,
        "a theorem about networks, read as an abstract; the question, how far a relaxation can be, is asked of masks",
        figures.relaxation,
        "No factor holds for every row, one with the condition does; true gaps are far below all that is guaranteed.",
    ),
    Seed(
        "Robust Stochastically-Descending Unrolled Networks",
        "2312.15788",
        f"stage {stage('unrolled')}",
        CARRIED,
        "accelerated projected steps are unrolled; the descent constraint is on the Frank-Wolfe gap",
        figures.unrolled,
        "The constraints hold of themselves, and at equal time trained steps do not beat Frank-Wolfe.",
        "wanda+unrolled+round",
    ),
    Seed(
        "Stable Nonconvex-Nonconcave Training via Linear Interpolation",
        "2310.13459",
        stage("fw(average=lookahead)"),
        CARRIED,
        "the interpolation of its lookahead around Frank-Wolfe steps of a convex problem",
        figures.lookahead,
        "It steadies what is not stable; this problem is, and the interpolation only slows it.",
    ),
    Seed(
        "Fast Convex Optimization for Two-Layer ReLU Networks: Cone Decompositions",
        "2202.01331",
        "–",
        REFUSED,
        "gated ReLU networks have cones that a solution is split over; the polytope of masks has none",
        figures.nothing,
        "Its solver is an accelerated proximal gradient method; on masks that is `pgd`.",
    ),
    Seed(
        "Parallel Stochastic Mirror Descent for MDPs",
        "",
        f"stage {stage('mirror', 'mirror(blocks=N)')}",
        CARRIED,
        "the entropy of Fermi and Dirac on a product of capped simplices; blocks of Gram terms are drawn",
        figures.mirror,
        "Ahead of in-face Frank-Wolfe steps to loose gaps by products, behind them to tight ones and by time.",
        "wanda+mirror+round",
    ),
)

HEAD = """# The methods that this project was created from

{published} of the {all} are here as published, {carried} are carried over to masks, of {asked} the question is asked of
masks, and {refused} are no solver here, for the reason given. *Figure*: the row of the report that is linked, computed
from its CSV file when this page is written; means over problems are geometric. *Not measured*: the file has no such
line yet.{field} Stages lead to their catalogue, docs/solvers.md, which `fwbench solvers` prints too. A title
without a link: no identifier was found. What is said of papers is from their abstracts and, where full texts or code
could be read, from those. Written by `python -m benchmarks.seeds.page`.

"""
FIELD_NOTE = """
*Field*: the error over Wanda's at {pattern} on SmolLM2-135M in [field](../field/index.md), mean of its layers."""


def page(reports: Path) -> str:
    beside = (reports / FIELD).exists()
    lines, differences = [], []
    for seed in SEEDS:
        paper = f"[{seed.paper}](https://arxiv.org/abs/{seed.arxiv})" if seed.arxiv else seed.paper
        cells = [paper, seed.state, seed.figure(reports) or UNKNOWN]
        if beside:
            value = figures.field(reports, seed.field) if seed.field else None
            cells.append(f"{value:.3f}" if value is not None else "–")
        lines.append([*cells, seed.finding, seed.here])
        differences.append([paper, seed.differs])
    states = [seed.state for seed in SEEDS]
    head = HEAD.format(
        published=states.count(PUBLISHED),
        carried=states.count(CARRIED),
        asked=states.count(ASKED),
        refused=states.count(REFUSED),
        all=len(SEEDS),
        field=FIELD_NOTE.format(pattern=FIELD_PATTERN) if beside else "",
    )
    columns = ("Paper", "State", "Figure", *(["Field"] if beside else []), "Finding", "Here")
    parts = [table(columns, lines, left=len(columns)), table(("Paper", "How it differs"), differences, left=2)]
    return head + "\n## How each differs\n\n".join(parts)


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    write_page(out, page(command.REPORTS))


if __name__ == "__main__":
    main()
