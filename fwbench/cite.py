"""How to cite a result: a sentence with the certified gap, a table, and BibTeX of all that stands behind it.

Numbers are rounded so that what is written stays true: errors and gaps up, lower bounds down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from statistics import median

from fwbench import __version__, metrics, spec
from fwbench.presets import title
from fwbench.problem import Problem, labels
from fwbench.problems import collections, registry
from fwbench.report import latex, rows, text
from fwbench.result import Proof
from fwbench.store import is_store

FORMATS = ("md", "latex", "bibtex")
OPTIMAL = 1e-9  # relative: a gap this small is none
DIGITS = 6
TITLE = "fwbench: real pruning-mask problems of language models, with proven optimality gaps"
PAPERS = {  # stage -> keys of cite.bib; what is fwbench's own has none
    "wanda": ("sun2024wanda",),
    "magnitude": ("han2015learning",),
    "ria": ("zhang2024ria",),
    "greedy": ("merz2002greedy",),
    "random": (),
    "fw": ("roux2025sparsefw", "frank1956algorithm", "jaggi2013revisiting"),
    "bernoulli": ("gao2024bypass", "williams1992simple"),
    "mirror": ("beck2003mirror", "bauschke2017descent"),
    "pgd": ("beck2009fista", "odonoghue2015adaptive"),
    "pdhg": ("condat2013primal", "applegate2021pdlp"),
    "momentum": ("pethick2025scion", "mokhtari2020stochastic"),
    "push": ("zaslavskiy2009path", "raghavachari1969connections"),
    "splitting": ("boyd2011distributed", "boza2024fast"),
    "resplit": ("boyd2011distributed", "angelelli2010kernel", "glover1989tabu", "zimmer2025sparseswaps"),
    "qp": ("qpsolvers",),
    "round": ("roux2025sparsefw",),
    "swap": ("zimmer2025sparseswaps",),
    "safeguard": ("zimmer2025sparseswaps", "sun2024wanda"),
    "dsnot": ("zhang2024dsnot", "sun2024wanda"),
    "splice": ("zhu2020polynomial",),
    "tabu": ("glover1989tabu", "wu2013hybrid"),
    "ils": ("lourenco2003iterated",),
    "anneal": ("kirkpatrick1983optimization",),
    "sparsegpt": ("frantar2023sparsegpt",),
    "admm": ("boza2024fast",),
    "refit": ("meng2024alps",),
    "reswap": ("hazimeh2020fast", "hassibi1992second", "zhao2024pruning"),
    "alps": ("meng2024alps",),
    "thanos": ("ilin2025thanos",),
    "iht": ("wen2025pruner", "blumensath2008iterative", "li2015accelerated"),
    "fistapruner": ("zhao2025fistapruner", "beck2009fast"),
    "alternate": ("bolte2014proximal",),
    "dwave": ("palubeckis2004multistart", "glover2019quantum"),
    "gurobi": ("gurobi",),
    "scip": ("hojny2025scip",),
    "bnb": ("billionnet2009qcr", "helmberg1996interior"),
    "unrolled": ("hadou2024robust",),
    "learned_bound": ("amos2017input", "helmberg1996interior"),
    "bound": ("helmberg1996interior", "poljak1995recipe"),
}
EXPECTATION = ("ageev2004pipage",)  # of round(method=expectation)
REORDERED = ("su2026rose",)  # of sparsegpt(order=loss)
CONVEX = ("billionnet2009qcr", "helmberg1996interior")  # of a stage with convexify=
TRANSPOSABLE = ("hubara2021accelerated", "meng2025tsenor")  # of a pattern transposable:N:M
MODELS = {"smollm2": "allal2025smollm2", "gemma3": "gemma2025gemma3"}  # of a name that has this in it
CHECKER = "rump2006verification"
ENTRIES = {
    match[1]: match[0].strip() + "\n"
    for match in re.finditer(r"@\w+\{(\w+),.*?\n\}\n", Path(__file__).with_name("cite.bib").read_text("utf-8"), re.S)
}


class CiteError(ValueError):
    """Nothing that could be cited; the message is one line."""


@dataclass(frozen=True)
class Claim:
    """The best mask of one problem, and how much a better one could save."""

    problem: str
    hash: str
    pattern: str
    rows: int
    n: int
    solver: str  # of the mask
    error: float
    lower: float | None
    proof: Proof
    bound_by: str
    meta: Mapping[str, str]

    @property
    def gap(self) -> float | None:
        """``(error - lower) / error``; None where no bound is known."""
        return metrics.certified_gap(self.error, self.lower)

    @property
    def optimal(self) -> bool:
        return self.gap is not None and self.gap <= OPTIMAL


def claims(what: str, folder: Path | str = registry.FOLDER) -> list[Claim]:
    """Claims of a store (its best mask of each problem), or of one problem (the registry's).

    Args:
        folder: of the registry.

    Raises:
        CiteError: nothing is known.
        StoreError, CollectionError, RegistryError: no such store or registry, or not one problem.
    """
    known = registry.best_known(folder)
    if is_store(what):
        found = of_rows(rows.load(what, known))
        if not found:
            raise CiteError(
                f"{what}: has no solved row of a mask with the given weights; gaps are of such masks, so cite what was "
                "run or pruned without a weight update"
            )
        return found
    _, problem = collections.one(what)
    entry = known.get(problem.hash)
    if entry is None or entry.upper is None:
        reason = "the registry has no mask of it; run solvers on it and cite their store, or name its --folder"
        raise CiteError(f"{problem.name}: {reason}")
    return [of_entry(entry, problem)]


def of_rows(joined: Iterable[rows.Row]) -> list[Claim]:
    """The best claim of each problem among rows of :func:`fwbench.report.rows.load`, by name."""
    best: dict[str, rows.Row] = {}
    for row in joined:
        if row["solved"] and not row["updates_weights"] and row["error"] is not None:
            held = best.setdefault(row["problem_hash"], row)
            if row["error"] < held["error"]:
                best[row["problem_hash"]] = row
    names = labels(((row["problem_hash"], row["problem"], row["pattern"]) for row in best.values()), pattern_shown=True)
    return sorted(
        (
            Claim(
                problem=names[row["problem_hash"]],
                hash=row["problem_hash"],
                pattern=row["pattern"],
                rows=row["rows"],
                n=row["n"],
                solver=row["solver"],
                error=row["error"],
                lower=row["lower_bound"],
                proof=Proof(row["proof"]),
                bound_by=(row["bound_source"] or "").removeprefix("registry: "),
                meta=row["meta"] or {},
            )
            for row in best.values()
        ),
        key=lambda claim: (claim.problem, claim.pattern),
    )


def of_entry(entry: registry.BestKnown, problem: Problem) -> Claim:
    """The claim of a registry's entry."""
    assert entry.upper is not None
    by = {Proof.VERIFIED: entry.verified_by, Proof.CLAIMED: entry.claimed_by, Proof.NONE: ""}[entry.proof]
    place = (entry.name, entry.hash, entry.pattern, entry.rows, entry.n)
    return Claim(*place, entry.upper_by, entry.upper, entry.lower, entry.proof, by, problem.meta)


# --- what is written -------------------------------------------------------------------------------------------------


def cite(what: str, form: str = "md", folder: Path | str = registry.FOLDER) -> str:
    """The citation of a store or of one problem, as Markdown with everything, LaTeX or BibTeX.

    Raises:
        CiteError: see :func:`claims`.
    """
    return document(claims(what, folder), form)


def document(found: Sequence[Claim], form: str = "md") -> str:
    """The citation of claims: ``latex`` needs booktabs and the file that ``bibtex`` writes."""
    if form == "bibtex":
        return bibtex(found)
    write = _Markdown() if form == "md" else _Latex()
    parts = [write.head, sentence(found, write), write.table(found)]
    if form == "md":
        parts.append(f"```bibtex\n{bibtex(found)}```")
    return "\n\n".join(filter(None, parts)) + "\n"


def keys(found: Sequence[Claim]) -> tuple[list[str], list[str]]:
    """Keys of the entries behind some claims, the suite's apart, and the stages that have none."""
    cited: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for claim in found:
        for solver in (claim.solver, claim.bound_by):
            known, others = papers(solver)
            cited |= dict.fromkeys(known)
            unknown |= dict.fromkeys(others)
        if claim.proof is Proof.VERIFIED:
            cited[CHECKER] = None
        cited |= dict.fromkeys(_of_data(claim))
    return list(cited), list(unknown)


def papers(solver: str) -> tuple[list[str], list[str]]:
    """Keys of the papers behind a spec's stages, and the names of stages of which none is known."""
    try:
        stages = spec.parse(solver).stages if solver else ()
    except spec.SpecError:  # a name that is no spec, such as a person's
        return [], [solver]
    found: dict[str, None] = {}
    for stage in stages:
        found |= dict.fromkeys(PAPERS.get(stage.name, ()))
        if dict(stage.params).get("convexify", "none") != "none":
            found |= dict.fromkeys(CONVEX)
        if dict(stage.params).get("method") == "expectation":
            found |= dict.fromkeys(EXPECTATION)
        if dict(stage.params).get("order") == "loss":
            found |= dict.fromkeys(REORDERED)
    return list(found), [stage.name for stage in stages if stage.name not in PAPERS]


def _of_data(claim: Claim) -> list[str]:
    """The papers of the pattern, the model and the text."""
    about = claim.meta
    found = list(TRANSPOSABLE) if claim.pattern.startswith("transposable:") else []
    found += [paper for name, paper in MODELS.items() if name in str(about.get("model", "")).lower()]
    return found + (["lee2005empirical"] if str(about.get("calibration", "")).startswith("lee") else [])


def bibtex(found: Sequence[Claim]) -> str:
    """BibTeX of the suite and of all that :func:`keys` names."""
    suite = f"@misc{{fwbench,\n  author = {{{{The fwbench authors}}}},\n  title = {{{TITLE}}},\n"
    suite += f"  year = {{2026}},\n  note = {{Software, version {__version__}}}\n}}\n"
    cited, unknown = keys(found)
    missing = [f"% no paper is known here of {text.clean(name)}\n" for name in unknown]
    return "\n".join([suite, *(ENTRIES[key] for key in cited), *missing])


def sentence(found: Sequence[Claim], write: _Markdown | _Latex) -> str:
    """One sentence that says how good the masks are, and how that is known."""
    suite = f"{write.plain('fwbench ' + __version__)}{write.cite(['fwbench'])}"
    if len(found) == 1:
        return _of_one(found[0], write, suite)
    gaps = [claim.gap for claim in found if claim.gap is not None and claim.proof is Proof.VERIFIED]
    names = {claim.problem.split(".")[0] for claim in found}
    parts = [f"On {len(found)} problems of {write.plain(' and '.join(sorted(names)))} in {suite}"]
    if not gaps:
        return f"{parts[0]}, no lower bound is verified."
    if max(gaps) >= 1:
        return f"{parts[0]}, not every verified bound is above 0: cite those problems one by one."
    optimal = sum(claim.optimal and claim.proof is Proof.VERIFIED for claim in found)
    parts.append(f"{optimal} of the best masks are optimal")
    parts.append(f"and no mask has an error lower than theirs by more than {write.plain(percent(max(gaps)))}")
    of = "" if len(gaps) == len(found) else f" on the {len(gaps)} problems that have a verified bound"
    middle = write.plain(percent(median(gaps)))
    proved = f"proved by certificates that its checker replays{write.cite([CHECKER])}"
    return f"{parts[0]}, {parts[1]}, {parts[2]} (median {middle}){of}, {proved}."


def _of_one(claim: Claim, write: _Markdown | _Latex, suite: str) -> str:
    shape = write.plain(f"{claim.rows} × {claim.n} weights, pattern {claim.pattern}, problem {claim.hash[:12]}")
    name = title(claim.solver)
    spec_of = "" if name == claim.solver else f" ({write.code(claim.solver)})"
    solver = write.code(name) + spec_of + write.cite(papers(claim.solver)[0])
    mask = f"the mask of {solver} for {write.code(claim.problem)} ({shape})"
    error = f"has error {write.plain(upward(claim.error))}"
    if claim.lower is None or claim.proof is Proof.NONE:
        return f"In {suite}, {mask} {error}; no lower bound is known."
    best = "and is optimal" if claim.optimal else f"and none is better by more than {write.plain(percent(claim.gap))}"
    if claim.gap is None or claim.gap >= 1:  # of a bound that is not above 0
        best = "and how much better another may be is open"
    lower = f"no mask has an error below {write.plain(downward(claim.lower))}"
    by = write.code(claim.bound_by) + write.cite(papers(claim.bound_by)[0])
    if claim.proof is Proof.VERIFIED:
        how = f"verified: the certificate of {by} is replayed by a checker that bounds its own rounding errors"
        how += write.cite([CHECKER])
    else:
        how = f"claimed by {by}, not verified"
    return f"In {suite}, {mask} {error} {best}: {lower} ({how})."


def percent(fraction: float | None) -> str:
    """A gap as a percentage that is not too small: ``4.8 %``, ``0.37 %``."""
    if fraction is None:
        return text.NOTHING
    if fraction <= OPTIMAL:
        return "0 %"
    places = Decimal("0.1") if fraction >= 0.01 else Decimal("0.01")
    return f"{(Decimal(fraction) * 100).quantize(places, rounding=ROUND_CEILING)} %"


def upward(value: float) -> str:
    """Six digits, no smaller than the value."""
    return _rounded(value, ROUND_CEILING)


def downward(value: float | None) -> str:
    """Six digits, no larger than the value."""
    return text.NOTHING if value is None else _rounded(value, ROUND_FLOOR)


def _rounded(value: float, mode: str) -> str:
    exact = Decimal(value)
    if not exact:
        return "0"
    return f"{exact.quantize(Decimal(1).scaleb(exact.adjusted() - DIGITS + 1), rounding=mode):g}"


COLUMNS = ("Problem", "Pattern", "Solver", "Error", "Lower bound", "Gap", "Proof")


def _cells(claim: Claim) -> list[str]:
    numbers = [upward(claim.error), downward(claim.lower), percent(claim.gap)]
    return [claim.problem, claim.pattern, title(claim.solver), *numbers, str(claim.proof)]


class _Markdown:
    head = ""

    def plain(self, words: str) -> str:
        return text.markdown(words)

    def code(self, words: str) -> str:
        return f"`{text.clean(words).replace('`', chr(39))}`" if words else "an unnamed solver"

    def cite(self, cited: Sequence[str]) -> str:
        return f" [{', '.join(cited)}]" if cited else ""

    def table(self, found: Sequence[Claim]) -> str:
        lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
        lines += [" | ".join(map(self.plain, _cells(claim))) for claim in found]
        return "\n".join(f"| {line} |" for line in lines)


def _breaking(words: str) -> str:
    """LaTeX of a name or spec that may go on in the next line behind its marks."""
    return re.sub(r"(?<=[+,(=./:])", r"\\allowbreak{}", latex.escape(words))


class _Latex:
    head = "% needs \\usepackage{booktabs}, \\usepackage[T1]{fontenc} and \\usepackage{textcomp}"

    def plain(self, words: str) -> str:
        return latex.escape(words)

    def code(self, words: str) -> str:
        return f"\\texttt{{{_breaking(words)}}}" if words else "an unnamed solver"

    def cite(self, cited: Sequence[str]) -> str:
        return f"~\\cite{{{','.join(cited)}}}" if cited else ""

    def table(self, found: Sequence[Claim]) -> str:
        # names are long: their columns break, and the table fits a page of article's width
        lines = [
            " & ".join([*map(self._broken, cells[:3]), *map(self.plain, cells[3:])]) for cells in map(_cells, found)
        ]
        layout = "{\\noindent\\footnotesize\\setlength{\\tabcolsep}{2pt}%"
        columns = "".join(f"p{{{width}\\linewidth}}" for width in (0.24, 0.15, 0.16)) + "rrrl"
        head = [layout, f"\\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(COLUMNS) + r" \\", r"\midrule"]
        return "\n".join([*head, *(line + r" \\" for line in lines), r"\bottomrule", r"\end{tabular}}"])

    def _broken(self, words: str) -> str:
        return r"\raggedright " + _breaking(words)
