"""Bring your own problem: weights, the Gram matrix of the layer's inputs, a pattern."""

import numpy as np

import fwbench as fwb

rng = np.random.default_rng(0)
W = rng.standard_normal((8, 64), dtype=np.float32)  # (rows, n), a row for each output
mixing = rng.standard_normal((64, 64))
X = mixing @ rng.standard_normal((64, 1000))  # (n, tokens), correlated inputs
problem = fwb.Problem("mine", W, X @ X.T / 1000, "0.5")  # half of each row goes

for spec in ("wanda", "SparseSwaps", "fast"):
    answer = fwb.solve(problem, spec)
    print(f"{spec:12} error {answer.error:7.2f}, {answer.ratio_to_wanda:.3f} of Wanda's")

change = W * ~answer.keep  # keep is bool (rows, n), True where a weight stays
by_hand = np.square(change @ X).sum() / 1000
print(f"the same by hand  {by_hand:7.2f}")
assert np.isclose(by_hand, answer.error)
