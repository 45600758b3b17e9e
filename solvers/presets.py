"""Names that stand for whole specs: the papers' methods as published, and the default sets of the command line."""

PRESETS = {
    # Roux et al., SparseFW, arXiv 2510.13713: open loop, 2000 steps, 90 % of the kept weights fixed by Wanda's score
    "sparsefw": "wanda+fw(variant=vanilla,step=open,steps=2000,alpha=0.9)+round(method=topk)",
    # Zimmer et al., SparseSwaps, arXiv 2512.10922: exact 1-swaps from Wanda's mask (there at most 100 a row)
    "sparseswaps": "wanda+swap",
    # ours: the best masks known here, and the best in about the time of a calibration pass
    "best": "fw(convexify=shared)+swap+tabu(iterations=10000)+anneal(rounds=6)",
    "fast": "wanda+swap",
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
