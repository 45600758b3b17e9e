"""A step rule and a direction rule of one's own for Frank-Wolfe: a function each, entered in its table."""

import torch

import fwbench as fwb
from fwbench.solvers.frank_wolfe.rules import DIRECTION_RULES, STEP_RULES, DirectionRule, StepRule, exact

STEP_RULES["damped"] = StepRule(lambda line: 0.9 * exact(line))  # short of the minimum along the direction


def best_half(at):
    """Towards the oracle's vertex, in the half of the rows alone where the gap is largest."""
    gap = (at.gradient * (at.u - at.vertex)).sum(dim=1, keepdim=True)
    direction = torch.where(gap >= gap.median(), at.vertex - at.u, 0.0)
    return direction, torch.ones_like(gap)


DIRECTION_RULES["half"] = DirectionRule(best_half)

if __name__ == "__main__":
    (problem,) = fwb.load("mini/n096.gate_proj*")
    for variant, step in (("vanilla", "linesearch"), ("vanilla", "damped"), ("half", "linesearch")):
        answer = fwb.solve(problem, f"fw(variant={variant},step={step},steps=300)+round")
        print(f"{variant:8} {step:11} {answer.result.relaxed_error:.6g} relaxed, {answer.error:.6g} rounded")
