"""reports/convergence: how the Frank-Wolfe variants converge, what an iteration costs, what each swap brings."""
