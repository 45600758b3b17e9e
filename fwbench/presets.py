"""Names that stand for whole specs, written out: the papers' methods as published, ours, and the default set."""

PRESETS = {
    # Roux et al., SparseFW, arXiv 2510.13713: open loop, 2000 steps, 90 % of the kept weights fixed by Wanda's score
    "SparseFW": "wanda+fw(alpha=0.9,step=open,steps=2000,variant=vanilla)+round",
    # the same from RIA's mask, by RIA's score: the other half of the paper's table 1
    "SparseFW_RIA": "ria+fw(alpha=0.9,fixed=ria,step=open,steps=2000,variant=vanilla)+round",
    # Zimmer et al., SparseSwaps, arXiv 2512.10922: exact 1-swaps from Wanda's mask, to the end
    "SparseSwaps": "wanda+swap",
    # the same with the most swaps a row that reviews of the paper quote
    "SparseSwaps100": "wanda+swap(limit=100)",
    # ours, chosen from the study in reports/masks (blocks 3, 13 and 23): tabu search finds more where a row is one
    # group, annealing in N:M; both go on after all cheaper stages have ended, at some 40 times their cost
    "best": "push+round+swap+safeguard+tabu+anneal(rounds=5)",
    # twice as far below Wanda's swaps as the relaxation rounded and swapped, for the same CPU time on sampled rows;
    # alone it ends above them on 2 % of rows, and far above where it prunes both of two huge inputs that cancel
    "fast": "push(rounds=20)+round+swap+safeguard",
    # a fifth of its time for the same error unstructured, 0.4 % more in N:M on average
    "faster": "wanda+swap+resplit",
}


def find(name: str) -> str | None:
    """The preset of that name, in capitals or not."""
    return {preset.lower(): preset for preset in PRESETS}.get(name.lower())


def title(spec: str) -> str:
    """The one name of a canonical spec wherever it is shown: as a preset, or one that goes on (``SparseFW+swap``)."""
    held = {text: preset for preset, text in PRESETS.items() if f"{spec}+".startswith(f"{text}+")}
    if not held:
        return spec
    longest = max(held, key=len)
    return held[longest] + spec.removeprefix(longest)


# What `fwbench run` runs when no solver is named
DEFAULT = (
    "magnitude",
    "wanda",
    "ria",
    "greedy",
    "SparseFW",
    "SparseSwaps",
    "fw",
    "fw(convexify=shared)+swap",
    "fast",
    "push+swap+safeguard+tabu(iterations=3000)",
    "qp",
    "gurobi(convexify=shared)",
    "bnb",
)
