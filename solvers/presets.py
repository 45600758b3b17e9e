"""Names that stand for whole specs: the papers' methods as published, and the default sets of the command line."""

PRESETS = {
    # Roux et al., SparseFW, arXiv 2510.13713: open loop, 2000 steps, 90 % of the kept weights fixed by Wanda's score
    "sparsefw": "wanda+fw(variant=vanilla,step=open,steps=2000,alpha=0.9)+round(method=topk)",
    # Zimmer et al., SparseSwaps, arXiv 2512.10922: exact 1-swaps from Wanda's mask (there at most 100 a row)
    "sparseswaps": "wanda+swap",
    # ours, chosen from the study in reports/masks (blocks 3, 13 and 23): tabu search finds more where a row is one
    # group, annealing in N:M; both go on after all cheaper stages have ended, at some 40 times their cost
    "best": "push+swap+safeguard+tabu+anneal(rounds=5)",
    # twice as far below Wanda's swaps as the relaxation rounded and swapped, for the same CPU time on sampled rows;
    # alone it ends above them on 2 % of rows, and far above where it prunes both of two huge inputs that cancel
    "fast": "push(rounds=20)+swap+safeguard",
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
    "fast",
    "push+swap+safeguard+tabu(iterations=3000)",
    "qp",
    "gurobi(convexify=shared)",
    "bnb",
)
