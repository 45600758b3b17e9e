"""A solver of one's own: a frozen dataclass of its parameters, and one function."""

from dataclasses import dataclass

import numpy as np

import fwbench as fwb


@fwb.register
@dataclass(frozen=True)
class Norms(fwb.Stage):
    """Prune the smallest |W_ij| ‖X_j‖^power in each group: magnitude for 0, Wanda for 1."""

    name, role = "norms", fwb.Role.START  # how specs call it; a mask from nothing
    power: float = 0.5

    def run(self, problem, state, context):
        score = np.abs(problem.W) * np.sqrt(problem.G.diagonal()) ** self.power
        return fwb.State(keep=~problem.pattern.prune(score))


if __name__ == "__main__":
    (problem,) = fwb.load("mini/n096.gate_proj*")
    for spec in ("norms", "norms(power=1)", "norms(power=0.8)+swap"):
        answer = fwb.solve(problem, spec)
        print(f"{spec:22} {answer.ratio_to_wanda:.4f} of Wanda's error")
