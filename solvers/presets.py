"""Names that stand for whole specs: the papers' methods as published, and the default sets of the command line."""

PRESETS = {
    # Roux et al., SparseFW, arXiv 2510.13713: open loop, 2000 steps, 90 % of the kept weights fixed by Wanda's score
    "sparsefw": "wanda+fw(variant=vanilla,step=open,steps=2000,alpha=0.9)+round(method=topk)",
    # Zimmer et al., SparseSwaps, arXiv 2512.10922: exact 1-swaps from Wanda's mask (there at most 100 a row)
    "sparseswaps": "wanda+swap",
    # ours, chosen on block 7, judged on blocks 3, 13 and 23 (reports/masks). Annealing beats tabu search at equal time
    # from any start, and after it the convexified start is no better than the plain one, which costs a tenth
    "best": "fw+swap+anneal(rounds=5)",
    # in about the time of a calibration pass: the plain relaxation leads swaps to better optima than any score does
    "fast": "fw+swap",
}

# What `fwbench run` runs when no solver is named
DEFAULT = (
    "magnitude",
    "wanda",
    "ria",
    "greedy",
    "sparsefw",
    "sparseswaps",
    "fw",
    "fw(convexify=shared)+swap",
    "fw(convexify=shared)+swap+tabu(iterations=3000)",
    "qp",
    "gurobi(convexify=shared)",
    "bnb",
)
