"""reports/convergence: how the Frank-Wolfe variants converge, and what an iteration costs."""
