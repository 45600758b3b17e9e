"""The methods of the field: each in the combination its paper means, and what is faithful to that paper."""

from __future__ import annotations

from dataclasses import dataclass

REGROUPED = ", regrouped"  # after a spec: inputs dealt to the groups of N:M anew before it
OURS = "no paper of pruning: "


@dataclass(frozen=True)
class Method:
    """A spec, whose method it is, what is as published, and what differs or could not be sourced."""

    spec: str
    source: str
    faithful: str
    differs: str

    @property
    def plain(self) -> str:
        """The spec that the pipeline resolves."""
        return self.spec.removesuffix(REGROUPED)


HAN, SUN, ZHANG = "Han et al. 2015", "Sun et al. 2023 (Wanda)", "Zhang et al. 2024 (RIA)"
SWAPS, SPARSEFW = "Zimmer et al. 2025 (SparseSwaps)", "Roux et al. 2025 (SparseFW)"
SPARSEGPT, OURSELVES = "Frantar, Alistarh 2023 (SparseGPT)", "fwbench"
COUNTS = "the count is each row's (group's), and nothing is retrained"
RELAXED = "method as in the textbook; the mask is the relaxation's, rounded by its largest entries"

MASKS = (
    Method("magnitude", HAN, "score", COUNTS),
    Method("wanda", SUN, "score and groups", "nothing"),
    Method("ria", ZHANG, "score, a = 0.5", "its channel permutation is the line below"),
    Method(
        f"ria{REGROUPED}",
        ZHANG,
        "channels dealt by summed scores, then assigned place by place, on the whole layer's scores",
        "read in summaries; rounds repeat until one gains nothing; the time is the whole layer's",
    ),
    Method(
        "greedy", "Merz, Freisleben 2002", "greedy descent of a binary quadratic program", OURS + "general problems"
    ),
    Method(
        "wanda+dsnot",
        "Zhang et al. 2024 (DSnoT)",
        "growing and pruning criteria, cycles",
        "moments stand for means and variances, which a Gram matrix does not hold; the best mask is kept, not the last",
    ),
    Method(
        "wanda+dsnot(power=0.0)",
        "Zhang et al. 2024 (DSnoT)",
        "as above",
        "as above, and without the division by the variance",
    ),
    Method(
        "wanda+splice",
        "Zhu et al. 2020 (abess)",
        "exchange of the s best sacrifices, best s",
        "no refit between exchanges, as these are masks; any gain counts",
    ),
    Method("SparseSwaps100", SWAPS, "exact 1-swaps from Wanda, at most 100 a row", "the limit is from reviews of it"),
    Method("SparseSwaps", SWAPS, "exact 1-swaps from Wanda", "goes on to the 1-swap optimum; no public code"),
    Method("ria+swap", SWAPS, "the same from RIA", "as above"),
    Method("magnitude+swap", SWAPS, "the same from magnitude", "as above"),
    Method("wanda+dsnot+swap", SWAPS, "the same from DSnoT", "as above, and as `dsnot`"),
    Method("greedy+swap", OURSELVES, "1-swaps from the greedy mask", OURS + "a combination"),
    Method(
        "SparseFW",
        SPARSEFW,
        "open loop, 2,000 steps, 90 % fixed by Wanda's score",
        "the count is exact all along, not filled up; no public code",
    ),
    Method("SparseFW_RIA", SPARSEFW, "the same from RIA, fixed by RIA's score", "as above"),
    Method("wanda+fw(variant=vanilla)+round", SPARSEFW, "the whole relaxation, nothing fixed", "exact line search"),
    Method("wanda+fw+round", OURSELVES, "in-face steps to a gap of 1e-4, rounded", "nothing is fixed"),
    Method("wanda+fw+round+swap", OURSELVES, "the same with 1-swaps", "a combination"),
    Method("wanda+mirror+round", "Nemirovski, Yudin 1983", RELAXED, OURS + "line search along the direction"),
    Method("wanda+pgd+round", "Beck, Teboulle 2009 (FISTA)", RELAXED, OURS + "lengths by the diagonal, restarts"),
    Method("wanda+pdhg+round", "Chambolle, Pock 2011", RELAXED, OURS + "restarts as in PDLP, row by row"),
    Method(
        "wanda+momentum+round",
        "Pethick et al. 2025 (Scion)",
        "averaged gradients, linear minimisation",
        "over a mask's polytope, not a norm ball; batches are made of the Gram matrix",
    ),
    Method(
        "wanda+bernoulli+round",
        "Gao et al. 2024",
        "policy gradient with a moving baseline, forward evaluations only",
        "single weights and a layer's error, where the paper prunes structures by the model's loss",
    ),
    Method(
        "wanda+unrolled+round",
        "Hadou et al. 2023",
        "unrolled steps trained under descent constraints",
        OURS + "trained here on other blocks of SmolLM2, none of Gemma",
    ),
    Method("push+round", "Zaslavskiy et al. 2009", "path following to concavity", OURS + "graph matching in the paper"),
    Method("push+round+swap", OURSELVES, "the same with 1-swaps", "a combination"),
    Method("splitting+round", "Boyd et al. 2011, 9.1", "ADMM on a set that is not convex", OURS + "growing penalty"),
    Method("splitting+round+swap+safeguard", OURSELVES, "the same with 1-swaps and safeguard", "a combination"),
    Method("fast", OURSELVES, "half the rounds of `push`, 1-swaps, safeguard", "a combination"),
    Method("faster", OURSELVES, "ADMM from SparseSwaps' mask, tabu search of a core, 1-swaps", "a combination"),
    Method("wanda+swap+tabu(iterations=3000)", "Glover 1989; Wu, Hao 2013", "tabu search", OURS + "candidate lists"),
    Method("push+round+swap+safeguard+tabu(iterations=3000)", OURSELVES, "the same from `push`", "a combination"),
    Method("wanda+ils", "Lourenço et al. 2003", "iterated local search", OURS + "kicks of 6 swaps"),
    Method(
        "wanda+anneal(rounds=2)",
        "Kirkpatrick et al. 1983",
        "annealing with swaps",
        OURS + "2 rounds, merging the best masks of each row",
    ),
    Method(
        "wanda+dwave(sweeps=10,reads=1)",
        "D-Wave, dwave-samplers (tabu)",
        "the package's own search on a QUBO",
        "10 moves a weight and one sample, a tenth and a quarter of the default",
    ),
    Method("best", OURSELVES, "`push`, 1-swaps, tabu search, annealing", "a combination"),
)

UPDATES = (
    Method(
        "sparsegpt",
        SPARSEGPT,
        "blocks of columns, updates by Cholesky rows",
        "a block's count is each row's, not the block's",
    ),
    Method(
        "sparsegpt(order=diagonal)",
        "Frantar et al. 2022 (GPTQ)",
        "its order, inputs of large variance first",
        "in SparseGPT's sweep",
    ),
    Method(
        "sparsegpt(order=loss)",
        "Su, Wang 2026 (ROSE)",
        "columns and blocks by their losses",
        "the formulas of the estimate and of the range could not be read, only summaries",
    ),
    Method("sparsegpt(order=loss,spread=0.0)", "Su, Wang 2026 (ROSE)", "the same, whatever the range", "as above"),
    Method(
        "thanos",
        "Ilin, Richtárik 2025 (Thanos)",
        "exact updates of a block's weights together",
        "the count is each row's; no rows spared as outliers; read in summaries, its block sizes may differ",
    ),
    Method("wanda+refit", "least squares", "on Wanda's mask", "ridge 1e-3"),
    Method("SparseSwaps+refit", "least squares", "on the mask of SparseSwaps", "ridge 1e-3"),
    Method("fast+refit", "least squares", "on the mask of `fast`", "ridge 1e-3"),
    Method("admm", "Boža 2024 (ADMM)", "gradual mask and weights, algorithms 1 and 2", "the count is each row's"),
    Method("wanda+admm", "Boža 2024 (ADMM)", "weights alone on Wanda's mask", "nothing"),
    Method(
        "alps",
        "Meng et al. 2024 (ALPS)",
        "equations 4, 27, 28, algorithms 1 and 2",
        "the count is each row's; the ridge is relative to the mean diagonal; a step length for each row",
    ),
    Method(
        "wanda+iht",
        "Wen et al. 2025 (mAIHT)",
        "monotone accelerated hard thresholding",
        "only the summary could be read; acceleration is Li and Lin's, the threshold holds each group's count",
    ),
    Method("wanda+iht(accelerated=False)", "Blumensath, Davies 2008", "plain hard thresholding", "inputs of norm 1"),
    Method(
        "wanda+alternate",
        "Bolte et al. 2014; LPAM 2024",
        "safeguarded alternating gradient steps (PALM)",
        "the rules that leave out tokens or multiply do not fit a Gram matrix and are not there",
    ),
    Method(
        "wanda+fistapruner",
        "Zhao et al. 2025 (FISTAPruner)",
        "ratio of errors, thresholds, warm start",
        "read in reviews; the bisection's interval, the rounds and a penalty for each row are ours",
    ),
    Method(
        "wanda+reswap",
        "Hazimeh, Mazumder 2020; Zhao et al. 2024 (MRP)",
        "exchanges by the error after the refit",
        "of long rows the most promising sixth at a time; MRP's closed form, with exchanges in place of single costs",
    ),
    Method("SparseSwaps+reswap", OURSELVES, "the same from SparseSwaps", "a combination"),
)

METHODS = MASKS + UPDATES
OTHER = (  # at the other patterns N:M
    "magnitude",
    "wanda",
    "ria",
    f"ria{REGROUPED}",
    "greedy",
    "wanda+dsnot",
    "SparseSwaps",
    "SparseFW",
    "splitting+round+swap+safeguard",
    "fast",
    "faster",
    "sparsegpt",
    "admm",
    "alps",
    "SparseSwaps+reswap",
)
