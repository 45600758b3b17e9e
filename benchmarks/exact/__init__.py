"""reports/exact: exact solvers beside one another, and where exact solution ends."""
