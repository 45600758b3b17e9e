"""How far is a mask from the best possible? Prove a bound, replay its certificate, keep it."""

import fwbench as fwb

(problem,) = fwb.load("mini/n096.gate_proj*")
answer = fwb.solve(problem, "fast")
proof = fwb.bound(problem, "mccormick", seconds=60)  # a bound for each row by itself

print(f"error {answer.error:.6f}, and no mask is below {proof.value:.6f}: ", end="")
print(f"a gap of {answer.gap(proof):.2%}")
print(f"the certificate ({proof.relaxation}), replayed, proves {proof.check():.6f}")
proof.save("gate_proj.npz")  # for others: fwbench verify gate_proj.npz

known = fwb.best_known(problem)  # in the library: here branch and bound closed the gap
print(f"best known: {known.upper:.6f}, gap {known.gap:.0%}, {known.proof}")
assert proof.value <= known.upper * (1 + 1e-9)
assert known.upper <= answer.error * (1 + 1e-9)
